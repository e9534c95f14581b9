"""mosaicml-streaming: MDS files."""

from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import BatchSampler, DataLoader

from erw.bench._stores_base import Batches, ByNumber, Reading
from erw.bench._stores_rows import Rows, as_batch, as_numpy

_HASH = "xxh3_64"


class Mosaic:
    """Arrays of a fixed shape, a hash for each file."""

    name, package, module, by_number, resume = "mosaicml-streaming", "mosaicml-streaming", "streaming", True, 2
    shuffle = "py1e: each row within a range about its shard's place"
    storage = "S3, GCS, OCI, Azure, HDFS, its own clients"

    def write(self, folder: Path, rows: Rows, shard: int) -> None:
        """See `Candidate`."""
        from streaming import MDSWriter

        kinds = {"latents": f"ndarray:float16:{_shape(rows.latents)}", "labels": "int"}
        if rows.features:
            kinds["features"] = f"ndarray:uint16:{_shape(rows.features)}"
        size = shard * (rows.row_bytes + 4) + 2048
        with MDSWriter(out=str(folder), columns=kinds, hashes=[_HASH], size_limit=size) as writer:
            for first in range(0, rows.count, shard):
                columns = {n: as_numpy(v) for n, v in rows.columns(first, min(shard, rows.count - first)).items()}
                for place in range(len(columns["labels"])):
                    row = {name: value[place] for name, value in columns.items()}
                    writer.write(row | {"labels": int(row["labels"])})

    def open(self, folder: Path, rows: Rows, reading: Reading) -> Any:
        """See `Candidate`."""
        from streaming import StreamingDataset
        from streaming.base.util import clean_stale_shared_memory

        clean_stale_shared_memory()  # of processes that ended without their exit handlers, as copies of a process do
        return StreamingDataset(local=str(folder), shuffle=reading.order == "block", shuffle_seed=reading.seed,
                                batch_size=reading.batch, shuffle_block_size=reading.mix, validate_hash=_HASH,
                                num_canonical_nodes=1)  # fmt: skip

    def batches(self, dataset: Any, rows: Rows, reading: Reading) -> tuple[Batches, Any]:
        """See `Candidate`."""
        from streaming import StreamingDataLoader

        collate = _Collate(rows)
        if reading.order == "random":
            order = np.random.default_rng(reading.seed).permutation(rows.count).tolist()
            sampler = BatchSampler(order, reading.batch, drop_last=False)
            view = ByNumber(dataset, rows.count)
            return iter(DataLoader(view, batch_sampler=sampler, num_workers=reading.workers, collate_fn=collate)), None
        loader = StreamingDataLoader(dataset, batch_size=reading.batch, num_workers=reading.workers, collate_fn=collate)
        if reading.state is not None:
            loader.load_state_dict(reading.state)
        return iter(loader), loader

    def state(self, loader: Any, batches: int, reading: Reading) -> Any:
        """The library's, of its loader."""
        return loader.state_dict()


class _Collate:
    def __init__(self, rows: Rows):
        self.rows = rows

    def __call__(self, found: list[dict]) -> dict:
        features = np.stack([row["features"] for row in found]) if self.rows.features else None
        latents, labels = np.stack([row["latents"] for row in found]), np.array([row["labels"] for row in found])
        return as_batch(latents, labels, features, self.rows)


def _shape(shape: tuple[int, ...]) -> str:
    return ",".join(map(str, shape))
