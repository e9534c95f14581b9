"""Generated rows of ImageNet's shape: moments, and DINOv2-B features of the patches."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

LATENTS, FEATURES = (8, 32, 32), (256, 768)


@dataclass(frozen=True)
class Rows:
    """``count`` rows that differ, a pure function of ``seed``; a row's label is its number, so that it says which it is.

    latents   shape of the fp16 moments
    features  shape of the bf16 tokens; () for none
    """

    count: int
    latents: tuple[int, ...] = LATENTS
    features: tuple[int, ...] = ()
    seed: int = 0

    def columns(self, first: int, count: int) -> dict[str, Tensor]:
        """Rows ``first`` and on: ``latents`` (B, 8, 32, 32) fp16, ``labels`` (B,) int64, ``features`` (B, 256, 768) bf16."""
        found = {"latents": self._latents.rows(first, count).view(torch.float16), "labels": torch.arange(first, first + count)}
        if self._features is not None:
            found["features"] = self._features.rows(first, count).view(torch.bfloat16)
        return found

    def row(self, number: int) -> dict[str, np.ndarray]:
        """One row as numpy has it: bf16 as its bits in uint16."""
        return {name: as_numpy(value[0]) for name, value in self.columns(number, 1).items()}

    @property
    def row_bytes(self) -> int:
        """Of what a reader gets, as stored."""
        return sum(value.nbytes for value in self.columns(0, 1).values())

    @cached_property
    def _latents(self) -> "_Blocks":
        return _Blocks(self.latents, self.seed)

    @cached_property
    def _features(self) -> "_Blocks | None":
        return _Blocks(self.features, self.seed + 1) if self.features else None


class _Blocks:
    """Endlessly many rows cut out of a few random ones: row n is block n % K, turned by n // K values."""

    _BYTES = 16 << 20

    def __init__(self, shape: tuple[int, ...], seed: int):
        self.shape, self.size = shape, int(np.prod(shape))
        self.blocks = max(1, min(512, self._BYTES // (2 * self.size)))
        values = np.random.default_rng([seed, self.size]).standard_normal((self.blocks, self.size), np.float32)
        self.twice = torch.from_numpy(values.astype(np.float16)).repeat(1, 2).view(torch.int16)

    def rows(self, first: int, count: int) -> Tensor:
        """(count, *shape) int16: the bits."""
        found = torch.empty((count, self.size), dtype=torch.int16)
        for low in range(first - first % self.blocks, first + count, self.blocks):
            turn, begin, end = low // self.blocks % self.size, max(low, first), min(low + self.blocks, first + count)
            found[begin - first : end - first] = self.twice[begin - low : end - low, turn : turn + self.size]
        return found.view(count, *self.shape)


def as_numpy(value: Tensor) -> np.ndarray:
    """Without a copy; bf16 as uint16."""
    return (value.view(torch.uint16) if value.dtype == torch.bfloat16 else value).numpy()


def as_batch(latents: np.ndarray, labels: np.ndarray, features: np.ndarray | None, rows: Rows) -> dict[str, Tensor]:
    """What training takes: ``latents`` (B, 8, 32, 32) fp32, ``labels`` (B,) int64, ``features`` (B, 256, 768) bf16."""
    batch = {
        "latents": torch.from_numpy(latents.reshape(-1, *rows.latents)).float(),
        "labels": torch.from_numpy(np.asarray(labels, np.int64)),
    }
    if features is not None:
        batch["features"] = torch.from_numpy(features.reshape(-1, *rows.features)).view(torch.bfloat16)
    return batch


def wrong(batch: dict[str, Tensor], rows: Rows) -> list[int]:
    """Numbers of the rows of a batch that are not what was written."""
    found = []
    for place, number in enumerate(batch["labels"].tolist()):
        if not 0 <= number < rows.count:
            found.append(number)
            continue
        wanted = {name: value[0] for name, value in rows.columns(number, 1).items() if name != "labels"}
        same = [torch.equal(batch["latents"][place], wanted["latents"].float())]
        if rows.features:
            same.append(torch.equal(batch["features"][place].view(torch.int16), wanted["features"].view(torch.int16)))
        if not all(same):
            found.append(number)
    return found
