"""Reading the file of one shard and group: rows by positioned reads, each checked against its digest."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from erw.data.store.columns import DIGEST, Column, between, digest
from erw.data.store.manifest import FileEntry, ShardEntry
from erw.errors import RankError

_MEND = "restore the file from a copy, or prepare the dataset again"


class Damaged(RankError):
    """A file of the store that does not hold what was written into it. The message names file, row and byte."""


class Missing(Damaged):
    """A file of the store that is not there."""


class ShardFile:
    """One open file. Narrow columns (labels, digests) are in memory, wide ones are read by row.

    Rows are read at their offsets, not through a memory map: a file that shrinks under a map kills the process, and a
    map's pages count as the process's memory. ``name`` is what messages call it.
    Raises `Damaged` where the file is missing, or is not the one of which the manifest tells.
    """

    def __init__(self, path: Path, columns: list[Column], shard: ShardEntry, name: str | None = None):
        self.path, self.rows, self.name = path, shard.rows, name or str(path)
        self.wide = {column.name: column for column in columns if column.wide}
        self.fd = -1
        try:
            self.fd = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            raise Missing(f"{self.name} is missing; {_MEND}") from None
        except OSError as error:
            raise Damaged(f"{self.name} cannot be opened: {error.strerror}; {_MEND}") from None
        try:
            self._open(columns, shard.files[columns[0].group])
        except BaseException:
            self.close()
            raise

    def _open(self, columns: list[Column], facts: FileEntry) -> None:
        size = os.fstat(self.fd).st_size
        if size != facts.bytes:
            verb = "truncated" if size < facts.bytes else "too long"
            raise Damaged(f"{self.name} is {verb}: {size} bytes, the manifest says {facts.bytes}; {_MEND}")
        self.offsets = facts.wide
        # First the checksums: what Arrow makes of damaged headers is not foreseeable.
        for (first, end), expected in zip(between(columns, facts.wide, self.rows, size), facts.rest, strict=True):
            part = np.empty(end - first, np.uint8)
            self._fill(part, first, "outside its rows")
            if f"{digest(part):016x}" != expected:
                raise self._wrong("outside its rows", first, len(part))
        self._take(columns)

    def _take(self, columns: list[Column]) -> None:
        """Narrow columns and digests into memory."""
        import pyarrow as pa

        self.narrow: dict[str, Any] = {}
        self.checks: dict[str, list[int]] = {}
        with pa.memory_map(str(self.path)) as file:
            batch = pa.ipc.open_file(file).get_batch(0)
            for column in columns:
                array = batch.column(column.name)
                if column.wide:
                    self.checks[column.name] = batch.column(column.name + DIGEST).to_pylist()
                elif column.dtype == "text":
                    self.narrow[column.name] = array.to_pylist()
                else:
                    buffer = (array.values if column.shape else array).buffers()[1]
                    raw = np.frombuffer(buffer, np.uint8, self.rows * column.row_bytes).reshape(self.rows, -1).copy()
                    self.narrow[column.name] = tensor_of(column, raw)

    def read(self, name: str, rows: np.ndarray, into: np.ndarray, places: np.ndarray) -> None:
        """Rows of a wide column into the rows ``places`` of ``into`` (W, row_bytes) uint8. Raises `Damaged`."""
        size, start, checks = self.wide[name].row_bytes, self.offsets[name], self.checks[name]
        for row, place in zip(rows.tolist(), places.tolist(), strict=True):
            target = into[place]
            self._fill(target, start + row * size, f"in column {name}, row {row}")
            if digest(target) != checks[row]:
                raise self._wrong(f"in column {name}, row {row}", start + row * size, size)

    def _wrong(self, where: str, first: int, size: int) -> Damaged:
        return Damaged(f"{self.name} is damaged {where}, bytes {first} to {first + size - 1}: wrong checksum; {_MEND}")

    def _fill(self, target: np.ndarray, offset: int, where: str) -> None:
        done = 0
        while done < target.nbytes:
            try:
                got = os.preadv(self.fd, [target[done:]], offset + done)
            except OSError as error:
                raise Damaged(f"{self.name} cannot be read {where}, byte {offset + done}: {error.strerror}; {_MEND}") from None
            if got == 0:
                raise Damaged(f"{self.name} is truncated {where}, byte {offset + done}; {_MEND}")
            done += got

    def verify(self) -> None:
        """Read all rows. Raises `Damaged` at the first that is wrong."""
        for column in self.wide.values():
            row = np.empty((1, column.row_bytes), np.uint8)
            for number in range(self.rows):
                self.read(column.name, np.array([number]), row, np.zeros(1, np.int64))

    @property
    def removed(self) -> bool:
        """Whether the file has been deleted: its bytes stay on the disk for as long as it is open."""
        return os.fstat(self.fd).st_nlink == 0

    def close(self) -> None:
        """Give the descriptor back."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __del__(self):
        self.close()


def tensor_of(column: Column, raw: np.ndarray) -> Tensor:
    """(W, *shape) of the column's dtype over (W, row_bytes) uint8, without a copy."""
    return torch.from_numpy(raw).view(column.torch_dtype).reshape(len(raw), *column.shape)
