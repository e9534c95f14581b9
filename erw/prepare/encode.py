"""From a batch of cropped images to the columns of a dataset."""

import re
from typing import Any

import torch
from torch import Tensor

from erw.cache import digest
from erw.errors import UserError
from erw.latents import load_vae
from erw.prepare.recipe import DTYPES, Recipe
from erw.teachers import load_teacher


class Encoder:
    """``encoder(pixels)`` gives the columns of one batch by name, (B, ...) on the CPU:

    latents              moments (B, 2C, s, s), or the pixels
    TEACHER              patch tokens (B, grid^2, width)
    TEACHER.cls          class token (B, width)
    images               the pixels, where they are kept beside moments

    ``channels_last`` is what convolutions are fast in; the other layout is for comparison.
    """

    def __init__(self, recipe: Recipe, device: torch.device, channels_last: bool = True):
        self.recipe, self.device = recipe, device
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.vae, self._latents = None, {"kind": "pixels"}
        if recipe.latents == "vae":
            self.vae = load_vae(recipe.vae)
            self._latents = {"kind": "vae", "vae": recipe.vae, "digest": digest(self.vae.state_dict()), **_scale(self.vae)}
            self.vae.to(device, memory_format=self.layout)
        self.teachers = {name: load_teacher(name, device, recipe.token_grid, recipe.teacher) for name in recipe.teacher.names}

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> dict[str, Tensor]:
        """Of ``pixels`` (B, 3, S, S) uint8."""
        pixels = pixels.to(self.device, non_blocking=True)
        columns = {"latents": pixels if self.vae is None else self._stored(self._moments(pixels), self.recipe.vae)}
        for name, teacher in self.teachers.items():
            encoded = teacher.encode(pixels)
            column = column_of(name)
            columns[column] = self._stored(encoded.tokens, name)
            if self.recipe.class_token and encoded.class_token is not None:
                columns[f"{column}.cls"] = self._stored(encoded.class_token, name)
        if self.recipe.images and self.vae is not None:
            columns["images"] = pixels
        return {name: value.cpu() for name, value in columns.items()}

    def _moments(self, pixels: Tensor) -> Tensor:
        images = (pixels.float() / 127.5 - 1).contiguous(memory_format=self.layout)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            parameters = self.vae.encode(images).latent_dist.parameters
        mean, log_variance = parameters.float().chunk(2, dim=1)
        return torch.cat([mean, torch.exp(0.5 * log_variance.clamp(-30, 20))], dim=1)

    def _stored(self, values: Tensor, what: str) -> Tensor:
        stored = values.to(DTYPES[self.recipe.dtype])
        if not torch.isfinite(stored).all():
            raise UserError(f"{what} gives values that --dtype {self.recipe.dtype} cannot hold, or NaN: take --dtype bf16")
        return stored.contiguous()

    @property
    def identity(self) -> dict[str, Any]:
        """What encodes: names, digests of weights, scale."""
        return {"latents": self._latents, "teachers": [teacher.identity() for teacher in self.teachers.values()]}


def column_of(teacher: str) -> str:
    """The name of the column of a teacher's tokens: the teacher's, as far as a file can have it."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", teacher)


def _scale(vae) -> dict[str, float]:
    return {"scale": vae.config.scaling_factor, "shift": vae.config.shift_factor or 0.0}
