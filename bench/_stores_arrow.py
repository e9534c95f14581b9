"""erw's own store, read as training reads it."""

import math
from itertools import islice
from pathlib import Path
from typing import Any

from erw.bench._stores_base import Batches, Reading
from erw.bench._stores_rows import Rows
from erw.data.store import StoreDataset, TeacherEntry, seal, write_shard
from erw.data.stream import Wanted, stream


def teachers(rows: Rows) -> list[TeacherEntry]:
    """Whose features the rows hold."""
    if not rows.features:
        return []
    tokens, width = rows.features
    return [TeacherEntry(name="t", width=width, grid=math.isqrt(tokens), flops=0, tokens="features")]


class Arrow:
    """`erw.data.store`."""

    name, package, module, by_number, resume = "erw", "pyarrow", "pyarrow", True, 2
    shuffle = "windows of shards, a pure function of seed and epoch"
    storage = "fsspec, tested against S3"

    def write(self, folder: Path, rows: Rows, shard: int) -> None:
        """See `Candidate`."""
        folder.mkdir(parents=True)
        shards = [
            write_shard(folder, number, rows.columns(first, min(shard, rows.count - first)))
            for number, first in enumerate(range(0, rows.count, shard))
        ]
        seal(folder, shards, rows.count, teachers(rows))

    def open(self, folder: Path, rows: Rows, reading: Reading) -> Any:
        """See `Candidate`. One window of all shards is one permutation of all rows."""
        dataset = StoreDataset(str(folder))
        shard = dataset.manifest.shards[0].rows
        window = len(dataset.manifest.shards) if reading.order == "random" else max(1, reading.mix // shard)
        return StoreDataset(str(folder), window)

    def batches(self, dataset: Any, rows: Rows, reading: Reading) -> tuple[Batches, Any]:
        """See `Candidate`."""
        start, step = reading.state or 0, reading.batch * reading.ranks
        found = stream(dataset, reading.seed, start, step, reading.batch, reading.rank, reading.ranks, reading.workers,
                       wanted=Wanted(("t",) if rows.features else ()))  # fmt: skip
        return (
            {"latents": b.latents, "labels": b.labels} | ({"features": b.features["t"]} if rows.features else {})
            for b in islice(found, (rows.count - start) // step)
        ), None

    def state(self, loader: Any, batches: int, reading: Reading) -> Any:
        """The images seen."""
        return batches * reading.batch * reading.ranks
