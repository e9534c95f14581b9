"""The order of training images: one endless stream, a pure function of (seed, position), for any number of ranks.

Position g of the stream is image g % N of epoch g // N, in an order that depends on (seed, epoch) alone (`erw.data.order`).
A global batch that starts at ``images`` holds positions images .. images + batch - 1, however ranks and accumulation split
it. So one integer, the images seen, places the data on resume.
"""

import signal
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
    """What a run needs besides latents and labels: cached teachers by name, or pixels, of whole groups of images.

    ``until``: the stream position, at which a step begins, from which on none of it is needed; None: always.
    """

    teachers: tuple[str, ...] = ()
    images: bool = False
    group: int = 1
    until: int | None = None

    def at(self, position: int) -> "Wanted":
        """What the image at a stream position needs."""
        return self if self.until is None or position < self.until else Wanted()


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
        wanted, length, blocks = self.wanted.at(int(positions[0])), len(self.dataset), self.dataset.blocks
        low = positions[0] // wanted.group * wanted.group
        high = -(-(positions[-1] + 1) // wanted.group) * wanted.group
        self._prefetch(*divmod(int(high) - 1, length), wanted)
        rows = rows_at(np.arange(low, high), self.seed, length, blocks)
        return Batch(
            index=torch.from_numpy(positions),
            **self.dataset.fetch(rows_at(positions, self.seed, length, blocks)),
            features={name: self.dataset.features(name, rows) for name in wanted.teachers},
            images=self.dataset.images(rows) if wanted.images else None,
            first=int(positions[0] - low),
        )

    def _prefetch(self, epoch: int, place: int, wanted: Wanted) -> None:
        """At the first place in a window: what is wanted of that window's shards, and of the next one's."""
        blocks = self.dataset.blocks
        if blocks is None:
            return
        window = blocks.window_at(self.seed, epoch, place)
        if (epoch, window) == self._window:
            return
        self._window = epoch, window
        after = (epoch, window + 1) if window + 1 < blocks.windows else (epoch + 1, 0)
        here, there = ([int(shard) for shard in blocks.shards(self.seed, e, w)] for e, w in ((epoch, window), after))
        end = epoch * len(self.dataset) + int(blocks.window_starts(self.seed, epoch)[window + 1])
        if (later := self.wanted.at(end)) == wanted:
            self.dataset.prefetch(here + there, wanted.teachers, wanted.images)
            return
        self.dataset.prefetch(here, wanted.teachers, wanted.images)
        self.dataset.prefetch(there, later.teachers, later.images)


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
           pin: bool = False, wanted: Wanted = Wanted(), ahead: int = 2) -> "Batches":  # fmt: skip
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
        worker_init_fn=_leave_signals_to_the_run if workers else None,
        multiprocessing_context="fork" if workers else None,  # a fork server would not survive the signals
        prefetch_factor=ahead if workers else None,
    )
    return Batches(loader)


class Batches(Iterator[Batch]):
    """What a loader yields, until closed. An error that it yields is raised, after its processes were told to end.

    They ignore what would end them otherwise, so that a process with an open one waits for them when it exits.
    """

    def __init__(self, loader: DataLoader):
        self._iterator: Iterator[Batch | UserError] | None = iter(loader)

    def __next__(self) -> Batch:
        if self._iterator is None:
            raise StopIteration
        found = next(self._iterator)
        if isinstance(found, UserError):
            self.close()
            raise found
        return found

    def close(self) -> None:
        """End the loader's processes."""
        self._iterator = None
