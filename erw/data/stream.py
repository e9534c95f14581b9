"""The order of training images: one endless stream, a pure function of (seed, position), for any number of ranks.

Position g of the stream is image g % N of epoch g // N, in an order that depends on (seed, epoch) alone (`erw.data.order`).
A global batch that starts at ``images`` holds positions images .. images + batch - 1, however ranks and accumulation split
it. So one integer, the images seen, places the data on resume.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from erw.data.order import Blocks, permutation
from erw.errors import UserError
from erw.types import Batch, CachedTeacher, StoredLatents


class Dataset(Protocol):
    """A source of training images with random access."""

    num_classes: int
    channels: int  # as stored: of VAE moments twice the latent's
    stored: StoredLatents | None  # what the latents are; None: the settings alone say it
    size: int  # side of the latent
    has_images: bool  # pixels for a teacher that runs online
    cached: dict[str, CachedTeacher]  # features that it holds, by the teacher's name
    blocks: Blocks | None  # shards, to be shuffled in blocks; None: all images in one permutation

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

    def prefetch(self, shards: list[int], teachers: tuple[str, ...], images: bool) -> None:
        """Bring what will be read of these shards near, in the background. Called only where there are ``blocks``."""
        ...


@dataclass(frozen=True)
class Wanted:
    """What a run needs besides latents and labels: cached teachers by name, or pixels, of whole groups of images."""

    teachers: tuple[str, ...] = ()
    images: bool = False
    group: int = 1


def rows_at(positions: np.ndarray, seed: int, length: int, blocks: Blocks | None = None) -> np.ndarray:
    """Dataset rows at stream ``positions``."""
    epochs, places = np.divmod(positions, length)
    rows = np.empty_like(positions)
    for epoch in np.unique(epochs).tolist():
        here = epochs == epoch
        if blocks is None:
            rows[here] = permutation(seed, epoch, length)[places[here]]
        else:
            rows[here] = blocks.rows(seed, epoch, places[here])
    return rows


class _Positions(TorchDataset):
    """Looks micro-batches up by their stream positions, so that loader processes can do the reading.

    A `UserError` is returned, not raised: the loader would wrap its message in a traceback.
    """

    def __init__(self, dataset: Dataset, seed: int, wanted: Wanted):
        self.dataset, self.seed, self.wanted = dataset, seed, wanted
        self._window = (-1, -1)

    def __getitem__(self, positions: np.ndarray) -> Batch | UserError:
        try:
            return self._read(positions)
        except UserError as error:
            return error

    def _read(self, positions: np.ndarray) -> Batch:
        wanted, length, blocks = self.wanted, len(self.dataset), self.dataset.blocks
        low = positions[0] // wanted.group * wanted.group
        high = -(-(positions[-1] + 1) // wanted.group) * wanted.group
        self._prefetch(*divmod(int(high) - 1, length))
        rows = rows_at(np.arange(low, high), self.seed, length, blocks)
        return Batch(
            index=torch.from_numpy(positions),
            **self.dataset.fetch(rows_at(positions, self.seed, length, blocks)),
            features={name: self.dataset.features(name, rows) for name in wanted.teachers},
            images=self.dataset.images(rows) if wanted.images else None,
            first=int(positions[0] - low),
        )

    def _prefetch(self, epoch: int, place: int) -> None:
        """At the first place in a window: that window's shards, and the next one's."""
        blocks = self.dataset.blocks
        if blocks is None:
            return
        window = blocks.window_at(self.seed, epoch, place)
        if (epoch, window) == self._window:
            return
        self._window = epoch, window
        after = (epoch, window + 1) if window + 1 < blocks.windows else (epoch + 1, 0)
        shards = [int(shard) for e, w in ((epoch, window), after) for shard in blocks.shards(self.seed, e, w)]
        self.dataset.prefetch(shards, self.wanted.teachers, self.wanted.images)


def micro_batches(start: int, batch: int, micro: int, rank: int, ranks: int) -> Iterator[np.ndarray]:
    """Stream positions of each micro-batch of ``rank``, from image ``start`` on, for ever."""
    while True:
        for first in range(start + rank * micro, start + batch, ranks * micro):
            yield np.arange(first, first + micro, dtype=np.int64)
        start += batch


def stream(dataset: Dataset, seed: int, start: int, batch: int, micro: int, rank: int, ranks: int, workers: int = 0,
           pin: bool = False, wanted: Wanted = Wanted(), ahead: int = 2) -> Iterator[Batch]:  # fmt: skip
    """Micro-batches of ``rank``, each of ``micro`` images, from image ``start`` on; ``batch`` / (ranks * micro) a step.

    Each of ``workers`` loader processes reads ``ahead`` micro-batches ahead of need.
    """
    loader = DataLoader(
        _Positions(dataset, seed, wanted),
        sampler=micro_batches(start, batch, micro, rank, ranks),
        batch_size=None,
        num_workers=workers,
        pin_memory=pin,
        persistent_workers=workers > 0,
        prefetch_factor=ahead if workers else None,
    )
    return map(_or_raise, iter(loader))


def _or_raise(batch: Batch | UserError) -> Batch:
    if isinstance(batch, UserError):
        raise batch
    return batch
