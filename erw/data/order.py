"""The order of images within an epoch: a permutation of all, or for shards one in blocks.

Both are pure functions of (seed, epoch). In blocks, shards are put in a random order, and the rows of each `window` of
them are shuffled together. So a reader is within few files at a time, each of which it needs once an epoch.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

_SHARDS, _ROWS = 0x5A, 0x7B  # the last word of a generator's seed: what it shuffles


@lru_cache(maxsize=2)
def permutation(seed: int, epoch: int, length: int) -> np.ndarray:
    """Order of ``length`` images within an epoch, all mixed."""
    return np.random.default_rng([seed, epoch]).permutation(length)


@dataclass(frozen=True)
class Blocks:
    """Rows of each shard, in the order of the dataset's rows, and how many shards are shuffled together."""

    shard_rows: tuple[int, ...]
    window: int

    @cached_property
    def starts(self) -> np.ndarray:
        """(shards + 1,) first row of each shard, and the number of rows."""
        return np.cumsum([0, *self.shard_rows])

    @property
    def windows(self) -> int:
        """In an epoch."""
        return -(-len(self.shard_rows) // self.window)

    def shards(self, seed: int, epoch: int, window: int) -> np.ndarray:
        """The shards of a window of an epoch."""
        return _shard_order(len(self.shard_rows), seed, epoch)[window * self.window : (window + 1) * self.window]

    def window_starts(self, seed: int, epoch: int) -> np.ndarray:
        """(windows + 1,) first place of each window in an epoch, and the number of places."""
        return _window_starts(self, seed, epoch)

    def window_at(self, seed: int, epoch: int, place: int) -> int:
        """The window in which a place of the epoch lies."""
        return int(np.searchsorted(self.window_starts(seed, epoch), place, side="right")) - 1

    def rows(self, seed: int, epoch: int, places: np.ndarray) -> np.ndarray:
        """Dataset rows at ``places`` of the epoch."""
        starts, found = self.window_starts(seed, epoch), np.empty_like(places)
        windows = np.searchsorted(starts, places, side="right") - 1
        for window in np.unique(windows).tolist():
            here = windows == window
            found[here] = _window_rows(self, seed, epoch, window)[places[here] - starts[window]]
        return found


@lru_cache(maxsize=4)
def _shard_order(shards: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, _SHARDS]).permutation(shards)


@lru_cache(maxsize=4)
def _window_starts(blocks: Blocks, seed: int, epoch: int) -> np.ndarray:
    rows = np.array(blocks.shard_rows)[_shard_order(len(blocks.shard_rows), seed, epoch)]
    return np.concatenate([[0], np.cumsum(np.add.reduceat(rows, np.arange(0, len(rows), blocks.window)))])


@lru_cache(maxsize=4)
def _window_rows(blocks: Blocks, seed: int, epoch: int, window: int) -> np.ndarray:
    """All rows of a window, shuffled."""
    shards = blocks.shards(seed, epoch, window)
    rows = np.concatenate([np.arange(blocks.starts[shard], blocks.starts[shard + 1]) for shard in shards])
    return np.random.default_rng([seed, epoch, _ROWS, window]).permutation(rows)
