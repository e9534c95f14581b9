"""Real data that fits in a test: scikit-learn's digits, 1,797 handwritten digits of 8x8 pixels with values 0 to 16."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from erw.errors import UserError
from erw.rng import philox

Split = Literal["train", "held_out"]

NUM_CLASSES = 10
SIDE = 8
HELD_OUT_PER_CLASS = 36
_SPLIT_SEED = 20
_BACKGROUND = -1.0


def split_of(labels: Tensor) -> Tensor:
    """(N,) bool, True where a sample is held out: 36 of each digit, drawn without replacement.

    The split is by image, not by writer (the data set names no writers), so both parts hold digits of the same hands.
    It depends on ``labels`` (N,) int64 and a fixed seed alone: the sort keys come from our own Philox, because library
    shuffles may change between versions.
    """
    index = torch.arange(len(labels), dtype=torch.int64)
    zero = torch.zeros_like(index)
    key = philox(_SPLIT_SEED, (index, zero, zero, zero))[0]
    held_out = torch.zeros_like(labels, dtype=torch.bool)
    for label in range(NUM_CLASSES):
        members = index[labels == label]
        held_out[members[key[members].argsort(stable=True)[:HELD_OUT_PER_CLASS]]] = True
    return held_out


def load(split: Split) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 8, 8) fp32 in [-1, 1], ink at +1, and labels (N,) int64, in the data set's order.

    N is 1,437 for ``train`` and 360 for ``held_out``. No generator, teacher or judge may train on ``held_out``.
    """
    # Slow to import, and needed by nobody who trains on other data.
    from sklearn.datasets import load_digits

    if split not in get_args(Split):
        raise UserError(f"digits have no split '{split}': choose one of {', '.join(get_args(Split))}")
    pixels, classes = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels.astype(np.float32)).view(-1, 1, SIDE, SIDE) / 8 - 1
    labels = torch.from_numpy(classes.astype(np.int64))
    chosen = split_of(labels) == (split == "held_out")
    return images[chosen], labels[chosen]


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How far random distortions of a digit go. No flips: they make other digits, or none."""

    rotation: float  # degrees, either way
    scale: float  # natural logarithm of the zoom, either way
    shear: float  # columns a row, either way
    shift: float  # pixels, either way, on each axis
    contrast: float  # relative change of the ink, either way
    noise: float  # standard deviation of Gaussian noise
    cutout: float  # probability of a blank 3x3 square (smaller where it crosses the border)


def augment(images: Tensor, how: Augmentation, generator: torch.Generator) -> Tensor:
    """Distort each of ``images`` (B, 1, 8, 8) fp32 in its own way; values may leave [-1, 1] a little."""
    ink = F.grid_sample(
        images - _BACKGROUND,
        F.affine_grid(_affine(len(images), how, generator), list(images.shape), align_corners=False),
        align_corners=False,
    )
    ink = ink * (1 + how.contrast * _symmetric(len(images), generator).view(-1, 1, 1, 1))
    ink = ink.masked_fill(_squares(len(images), how.cutout, generator), 0)
    return ink + _BACKGROUND + how.noise * torch.randn(ink.shape, generator=generator)


def _symmetric(count: int, generator: torch.Generator) -> Tensor:
    """(count,) uniform in [-1, 1)."""
    return 2 * torch.rand(count, generator=generator) - 1


def _affine(count: int, how: Augmentation, generator: torch.Generator) -> Tensor:
    """(count, 2, 3) maps from output to input coordinates, where the image spans [-1, 1]."""
    angle, zoom, shear, right, down = (_symmetric(count, generator) for _ in range(5))
    angle, zoom, shear = angle * math.radians(how.rotation), torch.exp(zoom * how.scale), shear * how.shear
    cosine, sine, pixels = zoom * angle.cos(), zoom * angle.sin(), how.shift * 2 / SIDE
    rows = [cosine, shear * zoom - sine, right * pixels], [sine, cosine, down * pixels]
    return torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)


def _squares(count: int, probability: float, generator: torch.Generator) -> Tensor:
    """(count, 1, 8, 8) bool: a 3x3 square around a random pixel in a fraction ``probability`` of the masks."""
    place = torch.arange(SIDE)
    row, column = (torch.randint(0, SIDE, (count, 1), generator=generator) for _ in range(2))
    drawn = torch.rand(count, generator=generator) < probability
    near_row, near_column = (place - row).abs() <= 1, (place - column).abs() <= 1
    return (near_row[:, None, :, None] & near_column[:, None, None, :]) & drawn.view(-1, 1, 1, 1)
