"""Hugging Face datasets: ``save_to_disk`` and ``load_from_disk``, Arrow format: its numpy format turns uint16 into int64."""

from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import BatchSampler, DataLoader

from erw.bench._stores_base import Batches, Reading
from erw.bench._stores_rows import Rows, as_batch, as_numpy


class HuggingFace:
    """Rows by number through a batched look-up; its own shuffle is that of `IterableDataset`."""

    name, package, module, by_number, resume = "datasets", "datasets", "datasets", True, 0
    shuffle = "order of shards and a buffer of rows"
    storage = "fsspec"

    def write(self, folder: Path, rows: Rows, shard: int) -> None:
        """See `Candidate`."""
        import datasets
        from datasets import Features, List, Value

        datasets.disable_progress_bars()
        kinds = {"latents": List(Value("float16"), int(np.prod(rows.latents))), "labels": Value("int64")}
        if rows.features:
            kinds["features"] = List(Value("uint16"), int(np.prod(rows.features)))
        tables = (_table(rows, first, min(shard, rows.count - first), Features(kinds)) for first in range(0, rows.count, shard))
        shards = -(-rows.count // shard)
        datasets.concatenate_datasets([datasets.Dataset(table) for table in tables]).save_to_disk(folder, num_shards=shards)

    def open(self, folder: Path, rows: Rows, reading: Reading) -> Any:
        """See `Candidate`."""
        import datasets

        dataset = datasets.load_from_disk(folder).with_format("arrow")
        if reading.order == "random":
            return dataset
        shards = max(len(list(folder.glob("*.arrow"))), reading.workers, 1)
        dataset = dataset.to_iterable_dataset(num_shards=shards)
        if reading.ranks > 1:
            from datasets.distributed import split_dataset_by_node

            dataset = split_dataset_by_node(dataset, reading.rank, reading.ranks)
        dataset = dataset.shuffle(seed=reading.seed, buffer_size=reading.mix // max(1, reading.workers * reading.ranks))
        if reading.state is not None:
            dataset.load_state_dict(reading.state)
        return dataset

    def batches(self, dataset: Any, rows: Rows, reading: Reading) -> tuple[Batches, Any]:
        """See `Candidate`."""
        if reading.order == "random":
            order = np.random.default_rng(reading.seed).permutation(rows.count).tolist()
            sampler = BatchSampler(order, reading.batch, drop_last=False)
            loader = DataLoader(dataset, sampler=sampler, batch_size=None, num_workers=reading.workers, collate_fn=_Whole(rows))
        else:
            loader = DataLoader(dataset, batch_size=reading.batch, num_workers=reading.workers, collate_fn=_Collate(rows))
        return iter(loader), dataset

    def state(self, loader: Any, batches: int, reading: Reading) -> Any:
        """The library's, in the process that reads."""
        return loader.state_dict()


class _Whole:
    """The table that a batched look-up gives, as a batch."""

    def __init__(self, rows: Rows):
        self.rows = rows

    def __call__(self, found: Any) -> dict:
        values = {name: _values(found[name].combine_chunks()) for name in found.column_names}
        return as_batch(values["latents"], values["labels"], values.get("features"), self.rows)


class _Collate(_Whole):
    """Tables of one row, as a batch."""

    def __call__(self, found: list[Any]) -> dict:
        import pyarrow as pa

        return super().__call__(pa.concat_tables(found))


def _values(column: Any) -> np.ndarray:
    """All numbers of a column, to be written to: torch wants that."""
    flat = column.flatten() if hasattr(column, "flatten") and column.type.num_fields else column
    return flat.to_numpy(zero_copy_only=False).copy()


def _table(rows: Rows, first: int, count: int, features: Any):
    """A `datasets.table.InMemoryTable`, whose values are not copied."""
    import pyarrow as pa
    from datasets.table import InMemoryTable

    arrays = []
    for value in rows.columns(first, count).values():
        flat = pa.array(as_numpy(value).reshape(-1))
        arrays.append(flat if value.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, value[0].numel()))
    return InMemoryTable(pa.Table.from_arrays(arrays, schema=features.arrow_schema))
