"""The order of training images: one endless stream, a pure function of (seed, position), for any number of ranks.

Position g of the stream is image ``permutation(seed, epoch)[g % N]`` of epoch ``g // N``. A global batch that starts at
``images`` holds positions images .. images + batch - 1, however ranks and accumulation split it. So one integer, the
images seen, places the data on resume.
"""

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from erw.types import Batch, CachedTeacher, StoredLatents


class Dataset(Protocol):
    """A source of training images with random access."""

    num_classes: int
    channels: int  # as stored: of VAE moments twice the latent's
    stored: StoredLatents | None  # what the latents are; None: the settings alone say it
    size: int  # side of the latent
    has_images: bool  # pixels for a teacher that runs online
    cached: dict[str, CachedTeacher]  # features that it holds, by the teacher's name

    def __len__(self) -> int: ...

    def fetch(self, rows: np.ndarray) -> dict[str, Tensor]:
        """``latents`` and ``labels`` of these rows, as in `Batch`."""
        ...

    def features(self, name: str, rows: np.ndarray) -> Tensor:
        """(W, N, D) cached tokens of one teacher."""
        ...

    def images(self, rows: np.ndarray) -> Tensor:
        """Pixels, as the teachers' loaders take them."""
        ...


@dataclass(frozen=True)
class Wanted:
    """What a run needs besides latents and labels: cached teachers by name, or pixels, of whole groups of images."""

    teachers: tuple[str, ...] = ()
    images: bool = False
    group: int = 1


@lru_cache(maxsize=2)
def permutation(seed: int, epoch: int, length: int) -> np.ndarray:
    """Order of the images within an epoch."""
    return np.random.default_rng([seed, epoch]).permutation(length)


def rows_at(positions: np.ndarray, seed: int, length: int) -> np.ndarray:
    """Dataset rows at stream ``positions``."""
    epochs, offsets = np.divmod(positions, length)
    rows = np.empty_like(positions)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        rows[here] = permutation(seed, int(epoch), length)[offsets[here]]
    return rows


class _Positions(TorchDataset):
    """Looks micro-batches up by their stream positions, so that loader processes can do the reading."""

    def __init__(self, dataset: Dataset, seed: int, wanted: Wanted):
        self.dataset, self.seed, self.wanted = dataset, seed, wanted

    def __getitem__(self, positions: np.ndarray) -> Batch:
        wanted, length = self.wanted, len(self.dataset)
        low = positions[0] // wanted.group * wanted.group
        high = -(-(positions[-1] + 1) // wanted.group) * wanted.group
        rows = rows_at(np.arange(low, high), self.seed, length)
        return Batch(
            index=torch.from_numpy(positions),
            **self.dataset.fetch(rows_at(positions, self.seed, length)),
            features={name: self.dataset.features(name, rows) for name in wanted.teachers},
            images=self.dataset.images(rows) if wanted.images else None,
            first=int(positions[0] - low),
        )


def micro_batches(start: int, batch: int, micro: int, rank: int, ranks: int) -> Iterator[np.ndarray]:
    """Stream positions of each micro-batch of ``rank``, from image ``start`` on, for ever."""
    while True:
        for first in range(start + rank * micro, start + batch, ranks * micro):
            yield np.arange(first, first + micro, dtype=np.int64)
        start += batch


def _leave_signals_to_the_run(worker: int) -> None:
    """A scheduler's signal to all processes asks the run to save and stop; its loaders are needed until it has."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def stream(dataset: Dataset, seed: int, start: int, batch: int, micro: int, rank: int, ranks: int, workers: int = 0,
           pin: bool = False, wanted: Wanted = Wanted()) -> Iterator[Batch]:  # fmt: skip
    """Micro-batches of ``rank``, each of ``micro`` images, from image ``start`` on; ``batch`` / (ranks * micro) a step."""
    loader = DataLoader(
        _Positions(dataset, seed, wanted),
        sampler=micro_batches(start, batch, micro, rank, ranks),
        batch_size=None,
        num_workers=workers,
        pin_memory=pin,
        persistent_workers=workers > 0,
        worker_init_fn=_leave_signals_to_the_run if workers else None,
    )
    return iter(loader)
