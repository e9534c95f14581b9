"""Which class each image is of."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from erw import rng
from erw.errors import UserError
from erw.rng import Purpose


def balanced_labels(count: int, num_classes: int) -> Tensor:
    """(count,) labels 0, 1, ..., classes - 1, 0, 1, ...: each class as often as any other, to within one."""
    return torch.arange(count) % num_classes


def random_labels(count: int, num_classes: int, seed: int) -> Tensor:
    """(count,) labels drawn uniformly, a function of (seed, position)."""
    return (rng.uniform(seed, torch.arange(count), Purpose.SAMPLER_LABEL) * num_classes).long().clamp(max=num_classes - 1)


def parse_labels(text: str, count: int, num_classes: int, seed: int) -> Tensor:
    """(count,) labels from the option's text: balanced, random, class numbers with commas between, which are repeated, or
    a .npy file of at least ``count``. Raises `UserError` for anything that is not a class of the model."""
    if text == "balanced":
        return balanced_labels(count, num_classes)
    if text == "random":
        return random_labels(count, num_classes, seed)
    given = _read(Path(text), count) if text.endswith(".npy") else _listed(text)
    if given.min() < 0 or given.max() >= num_classes:
        raise UserError(f"--labels '{text}': classes of this model are 0..{num_classes - 1}")
    return given.repeat(-(-count // len(given)))[:count]


def _listed(text: str) -> Tensor:
    try:
        return torch.tensor([int(part) for part in text.split(",")])
    except ValueError:
        raise UserError(
            f"--labels takes balanced, random or class numbers with commas between, or a .npy file, not '{text}'"
        ) from None


def _read(file: Path, count: int) -> Tensor:
    try:
        given = np.load(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"--labels {file} cannot be read: {error}") from None
    if given.ndim != 1 or given.dtype.kind not in "iu" or len(given) < count:
        raise UserError(f"--labels {file} holds {given.dtype} {given.shape}: {count:,} class numbers are wanted")
    return torch.from_numpy(given[:count].astype(np.int64))
