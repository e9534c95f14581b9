"""webdataset: tar files, read in sequence."""

from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from erw.bench._stores_base import Batches, Reading
from erw.bench._stores_rows import Rows, as_batch, as_numpy


class WebData:
    """A row is two or three entries of a tar file, of raw bytes."""

    name, package, module, by_number, resume = "webdataset", "webdataset", "webdataset", False, 2
    shuffle = "order of shards and a buffer of rows"
    storage = "any command's pipe (curl, aws, gsutil)"

    def write(self, folder: Path, rows: Rows, shard: int) -> None:
        """See `Candidate`."""
        import webdataset

        folder.mkdir(parents=True)
        with webdataset.ShardWriter(str(folder / "%05d.tar"), maxcount=shard, maxsize=1 << 40, verbose=0) as writer:
            for first in range(0, rows.count, shard):
                columns = {n: as_numpy(v) for n, v in rows.columns(first, min(shard, rows.count - first)).items()}
                for place, number in enumerate(columns["labels"].tolist()):
                    entry = {"__key__": f"{number:08d}", "labels.bin": columns["labels"][place].tobytes()}
                    entry |= {f"{name}.bin": columns[name][place].tobytes() for name in columns if name != "labels"}
                    writer.write(entry)

    def open(self, folder: Path, rows: Rows, reading: Reading) -> Any:
        """See `Candidate`."""
        import webdataset

        files = sorted(map(str, folder.glob("*.tar")))
        buffer = reading.mix // max(1, reading.workers * reading.ranks)
        splitter = webdataset.split_by_node if reading.ranks > 1 else None
        return webdataset.WebDataset(files, shardshuffle=len(files), seed=reading.seed, nodesplitter=splitter).shuffle(
            buffer, initial=buffer, seed=reading.seed
        )

    def batches(self, dataset: Any, rows: Rows, reading: Reading) -> tuple[Batches, Any]:
        """See `Candidate`."""
        loader = DataLoader(dataset, batch_size=reading.batch, num_workers=reading.workers, collate_fn=_Collate(rows))
        return iter(loader), loader

    def state(self, loader: Any, batches: int, reading: Reading) -> Any:
        """It has none."""
        raise NotImplementedError("no state to save")


class _Collate:
    def __init__(self, rows: Rows):
        self.rows = rows

    def __call__(self, found: list[dict]) -> dict:
        latents = np.frombuffer(bytearray().join(row["latents.bin"] for row in found), np.float16)
        labels = np.frombuffer(b"".join(row["labels.bin"] for row in found), np.int64).copy()
        features = None
        if self.rows.features:
            features = np.frombuffer(bytearray().join(row["features.bin"] for row in found), np.uint16)
        return as_batch(latents, labels, features, self.rows)
