"""From a batch of cropped images to the columns of a dataset."""

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from erw.errors import UserError
from erw.files import as_file_name
from erw.latents import open_vae
from erw.prepare.recipe import DTYPES, Recipe
from erw.teachers import load_teacher
from erw.types import StoredLatents


class Encoder:
    """``encoder(pixels)`` gives the columns of one batch by name, (B, ...) on the CPU:

    latents      moments (B, 2C, s, s), an AutoencoderTiny's latents (B, C, s, s), or the pixels
    TEACHER      patch tokens (B, grid^2, width)
    TEACHER.cls  class token (B, width)
    images       the pixels, where they are kept beside latents

    ``channels_last`` is what convolutions are fast in; the other layout is for comparison.
    """

    def __init__(self, recipe: Recipe, device: torch.device, channels_last: bool = True):
        self.recipe, self.device, self.vae = recipe, device, None
        self.stored = StoredLatents(kind="pixels", channels=3)
        if recipe.latents == "vae":
            self.vae = open_vae(recipe.vae, device, recipe.precision, channels_last)
            self.stored = self.vae.facts
        self.teachers = {name: load_teacher(name, device, recipe.token_grid, recipe.teacher) for name in recipe.teacher.names}

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> dict[str, Tensor]:
        """Of ``pixels`` (B, 3, S, S) uint8."""
        pixels = pixels.to(self.device, non_blocking=True)
        columns = {"latents": self._stored(self.vae.encode(pixels), self.recipe.vae) if self.vae else pixels}
        for name, teacher in self.teachers.items():
            encoded, column = teacher.encode(pixels), column_of(name)
            columns[column] = self._stored(encoded.tokens, name)
            if self.recipe.class_token and encoded.class_token is not None:
                columns[f"{column}.cls"] = self._stored(encoded.class_token, name)
        if self.recipe.images and self.vae:
            columns["images"] = pixels
        return {name: value.cpu() for name, value in columns.items()}

    @property
    def identity(self) -> dict[str, Any]:
        """What the columns are: weights with their digests, scale, normalisation."""
        return {"latents": asdict(self.stored), "teachers": [teacher.identity() for teacher in self.teachers.values()]}

    def _stored(self, values: Tensor, what: str) -> Tensor:
        stored = values.to(DTYPES[self.recipe.dtype])
        if not torch.isfinite(stored).all():
            raise UserError(f"{what} gives values that --dtype {self.recipe.dtype} cannot hold, or NaN: take --dtype bf16")
        return stored.contiguous()


def column_of(teacher: str) -> str:
    """The name of the column of a teacher's tokens: the teacher's, as far as a file can have it."""
    return as_file_name(teacher)
