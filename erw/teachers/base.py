"""What teachers share: their settings, what they return, and how images and feature maps are resized for them."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from erw.errors import UserError
from erw.settings import setting
from erw.types import TeacherSpec

# The token grid of the papers' models: 256-pixel images, 32x32 latents, patches of 2.
GRID = 16
# Shrinking by less than this is REPA's (256 to 224, 512 to 448) and stays as it is there, without a low-pass filter.
_FILTER_BELOW = 0.75


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Settings of the teachers."""

    name: str = setting(
        "none", "none, or teachers by name (docs/teachers.md) or as timm:MODEL, with commas between; a projector each"
    )
    source: Literal["cached", "online"] = setting("cached", "features computed once, or by a forward in every step")
    file: str = setting(
        "none", "none: the hub's weights; or a local file of weights, NAME=FILE with commas between for several"
    )
    precision: Literal["bf16", "fp32"] = setting("bf16", "of the teachers' weights and forward; those for digits have fp32")
    compile: bool = setting(False, "compile the teachers' forward")
    side: int = setting(0, "pixels that images are resized to for a teacher; 0: its patch size times the model's token grid")

    def __post_init__(self):
        if self.side < 0:
            raise UserError(f"--teacher.side must not be negative, not {self.side}")
        for name in self.files:
            if name not in self.names:
                raise UserError(f"--teacher.file is for '{name}', but --teacher.name is {self.name}: use one of these names")

    @property
    def names(self) -> tuple[str, ...]:
        """The teachers, in the order of their projectors."""
        return () if self.name == "none" else tuple(self.name.split(","))

    @property
    def files(self) -> dict[str, str]:
        """Teacher name to its file of weights. Raises `UserError` where it is not clear whose a file is."""
        if self.file == "none":
            return {}
        pairs = [part.partition("=") for part in self.file.split(",")]
        if all(equals for _, equals, _ in pairs):
            return {name: file for name, _, file in pairs}
        if len(pairs) > 1 or len(self.names) != 1:
            raise UserError(f"--teacher.file {self.file} does not say whose it is: NAME=FILE, with commas between for several")
        return {self.names[0]: self.file}


@dataclass(frozen=True)
class Encoded:
    """What one forward of a teacher gives: tokens (B, grid^2, width) in row order, class token (B, width) where it has one."""

    tokens: Tensor
    class_token: Tensor | None


class Teacher(Protocol):
    """What every teacher offers. ``flops``: its forward for one image."""

    spec: TeacherSpec
    flops: int

    def encode(self, images: Tensor) -> Encoded:
        """Of images (B, 3, S, S) uint8 or fp32 in [-1, 1] (digits: as their loader's file says), without gradient."""
        ...

    def tokens(self, images: Tensor) -> Tensor:
        """The tokens alone."""
        ...

    def identity(self) -> dict[str, Any]:
        """JSON values that say which features these are: weights with their digest, input, normalisation, grid, versions."""
        ...


def held_bytes(network: nn.Module, precision: str) -> int:
    """Bytes of the weights and buffers of ``network`` in ``precision``, bf16 or fp32."""
    return sum(tensor.numel() for tensor in network.state_dict().values()) * (2 if precision == "bf16" else 4)


def fed_side(patch: int, grid: int, least: int) -> int:
    """Pixels that an image is resized to: one patch a token as in REPA (14 * 16 = 224, at 512 pixels 14 * 32 = 448), or as
    many times more as reach ``least``, below which an encoder sees too little."""
    return patch * grid * max(1, -(-least // (patch * grid)))


def unit_images(images: Tensor) -> Tensor:
    """Images (B, 1 or 3, H, W), uint8 or floating in [-1, 1], as (B, 3, H, W) fp32 in [0, 1]."""
    unit = images.float() / 255 if images.dtype == torch.uint8 else (images.float() + 1) / 2
    if images.shape[1] not in (1, 3):
        raise UserError(f"a teacher takes images of 1 or 3 channels, not {images.shape[1]}: are these latents?")
    return unit.expand(-1, 3, -1, -1)


def resized(images: Tensor, side: int) -> Tensor:
    """(B, C, H, W) fp32 to (B, C, side, side), bicubically; antialiased where that shrinks by a quarter or more."""
    if images.shape[-2:] == (side, side):
        return images
    shrinks = side <= _FILTER_BELOW * max(images.shape[-2:])
    return F.interpolate(images, (side, side), mode="bicubic", antialias=shrinks, align_corners=False)


def resampled(tokens: Tensor, grid: int) -> Tensor:
    """Tokens (B, n^2, D) on another square grid, (B, grid^2, D): bilinear on the feature map, antialiased, in fp32."""
    before = round(tokens.shape[1] ** 0.5)
    if before == grid:
        return tokens
    feature_map = tokens.float().transpose(1, 2).unflatten(2, (before, before))
    feature_map = F.interpolate(feature_map, (grid, grid), mode="bilinear", antialias=True, align_corners=False)
    return feature_map.flatten(2).transpose(1, 2).to(tokens.dtype)
