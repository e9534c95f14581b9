"""What each store of the comparison must be able to do. One adapter a library, in a file of its own."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from erw.bench._stores_rows import Rows

Batches = Iterator[dict[str, Tensor]]


@dataclass(frozen=True)
class Reading:
    """How an epoch is read.

    order    ``random``: all rows in one permutation, looked up by number; ``block``: the store's own shuffle
    batch    rows of a batch of this rank
    workers  loader processes
    mix      rows that are shuffled together in block order, in all workers together
    state    where to go on: what `Candidate.state` gave after some batches; None: at the start
    """

    order: str
    batch: int
    workers: int
    mix: int
    seed: int = 0
    rank: int = 0
    ranks: int = 1
    state: Any = None


class Candidate(Protocol):
    """A store. ``package`` is what pip calls it; ``module`` what it is imported as.

    by_number      whether rows can be looked up by number, which `random` needs
    resume         loader processes with which the library's own resume is tried
    """

    name: str
    package: str
    module: str
    by_number: bool
    resume: int
    shuffle: str
    storage: str

    def write(self, folder: Path, rows: Rows, shard: int) -> None:
        """All rows into ``folder``, ``shard`` of them a file."""
        ...

    def open(self, folder: Path, rows: Rows, reading: Reading) -> Any:
        """The dataset, as one opens it for this reading."""
        ...

    def batches(self, dataset: Any, rows: Rows, reading: Reading) -> tuple[Batches, Any]:
        """(the batches of an epoch, as `as_batch` has them; what `state` wants)."""
        ...

    def state(self, loader: Any, batches: int, reading: Reading) -> Any:
        """Where the epoch is after ``batches`` batches of all ranks, as JSON. Raises NotImplementedError: it cannot say."""
        ...


class ByNumber:
    """A map-style view of a dataset that is an iterable one too, which a loader would take it for."""

    def __init__(self, dataset: Any, count: int):
        self.dataset, self.count = dataset, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> dict:
        return self.dataset[number]


def candidates() -> dict[str, Candidate]:
    """By the name that the table calls them."""
    from erw.bench._stores_arrow import Arrow
    from erw.bench._stores_huggingface import HuggingFace
    from erw.bench._stores_litdata import LitData
    from erw.bench._stores_mosaic import Mosaic
    from erw.bench._stores_webdataset import WebData

    return {store.name: store for store in (Arrow(), HuggingFace(), LitData(), Mosaic(), WebData())}
