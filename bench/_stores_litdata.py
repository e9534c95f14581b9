"""litdata: ``optimize`` and ``StreamingDataset``."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader

from erw.bench._stores_base import Batches, ByNumber, Reading
from erw.bench._stores_rows import Rows


def _rows(rows: Rows, shard: int, first: int):
    columns = rows.columns(first, min(shard, rows.count - first))
    if "features" in columns:
        columns["features"] = columns["features"].view(torch.int16)  # bf16 tensors it cannot write
    for place in range(len(columns["labels"])):
        yield {name: value[place] if value.ndim > 1 else int(value[place]) for name, value in columns.items()}


class LitData:
    """Rows as tensors, chunks of as many rows as the others' shards."""

    name, package, module, by_number, resume = "litdata", "litdata", "litdata", True, 2
    shuffle = "order of chunks, and rows within a chunk"
    storage = "S3, GCS, Azure, its own client"

    def write(self, folder: Path, rows: Rows, shard: int) -> None:
        """See `Candidate`."""
        import litdata

        folder.mkdir(parents=True)
        litdata.optimize(partial(_rows, rows, shard), list(range(0, rows.count, shard)), str(folder), chunk_size=shard,
                         num_workers=1, num_uploaders=1, verbose=False, start_method="fork")  # fmt: skip

    def open(self, folder: Path, rows: Rows, reading: Reading) -> Any:
        """See `Candidate`. All rows of a chunk are mixed, as in the other stores."""
        import litdata

        dataset = litdata.StreamingDataset(
            str(folder), shuffle=reading.order == "block", seed=reading.seed, drop_last=False, item_shuffle_window=0
        )
        len(dataset)
        return dataset

    def batches(self, dataset: Any, rows: Rows, reading: Reading) -> tuple[Batches, Any]:
        """See `Candidate`."""
        import litdata

        if reading.order == "random":
            order = np.random.default_rng(reading.seed).permutation(rows.count).tolist()
            sampler = BatchSampler(order, reading.batch, drop_last=False)
            view = ByNumber(dataset, rows.count)
            return iter(DataLoader(view, batch_sampler=sampler, num_workers=reading.workers, collate_fn=_collate)), None
        loader = litdata.StreamingDataLoader(
            dataset, batch_size=reading.batch, num_workers=reading.workers, collate_fn=_collate, shuffle=None
        )
        if reading.state is not None:
            loader.load_state_dict(reading.state)
        return iter(loader), loader

    def state(self, loader: Any, batches: int, reading: Reading) -> Any:
        """The library's, of its loader."""
        return loader.state_dict()


def _collate(found: list[dict]) -> dict:
    batch = {"latents": torch.stack([row["latents"] for row in found]).float()}
    batch["labels"] = torch.tensor([int(row["labels"]) for row in found])
    if "features" in found[0]:
        batch["features"] = torch.stack([row["features"] for row in found]).view(torch.bfloat16)
    return batch
