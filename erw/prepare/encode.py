"""From a batch of cropped images to the columns of a dataset."""


import torch
from torch import Tensor

from erw.errors import UserError
from erw.latents import load_vae
from erw.prepare.recipe import DTYPES, Recipe
from erw.teachers import load_teacher


class Encoder:
    """``encoder(pixels)`` gives the columns of one batch: (B, ...) on the CPU, by name. ``facts``: what the manifest says."""

    def __init__(self, recipe: Recipe, device: torch.device):
        self.recipe, self.device = recipe, device
        self.vae = load_vae(recipe.vae).to(device) if recipe.latents == "vae" else None
        self.teachers = {name: load_teacher(name, device) for name in recipe.teacher_names}

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> dict[str, Tensor]:
        """Of ``pixels`` (B, 3, S, S) uint8."""
        pixels = pixels.to(self.device, non_blocking=True)
        columns = {}
        with self._autocast():
            if self.vae is not None:
                columns["latents"] = self._stored(moments(self.vae, pixels), "moments")
            for name, teacher in self.teachers.items():
                columns[f"features.{name}"] = self._stored(teacher.tokens(pixels), name)
        if self.vae is None:
            columns["latents"] = pixels
        elif self.recipe.images:
            columns["images"] = pixels
        return {name: value.cpu() for name, value in columns.items()}

    def _autocast(self):
        precision = self.recipe.precision
        return torch.autocast(self.device.type, DTYPES[precision], enabled=precision != "fp32")

    def _stored(self, values: Tensor, what: str) -> Tensor:
        stored = values.to(DTYPES[self.recipe.dtype])
        if not torch.isfinite(stored).all():
            raise UserError(f"{what}: values that {self.recipe.dtype} cannot hold, or NaN: take --dtype or --precision bf16")
        return stored


def moments(vae, pixels: Tensor) -> Tensor:
    """Mean and standard deviation (B, 2C, s, s) fp32 of the posterior of ``pixels`` uint8."""
    distribution = vae.encode(pixels.float() / 127.5 - 1).latent_dist
    mean, log_variance = distribution.parameters.float().chunk(2, dim=1)
    return torch.cat([mean, torch.exp(0.5 * log_variance.clamp(-30, 20))], dim=1)
