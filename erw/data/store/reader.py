"""Reading the file of one shard and group: rows by positioned reads, each checked against its digest."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from erw.data.store.columns import DIGEST, Column, digest
from erw.data.store.manifest import FORMAT, FileEntry
from erw.errors import RankError

_MEND = "restore the file from a copy, or prepare the dataset again"


class Damaged(RankError):
    """A file of the store that does not hold what was written into it. The message names file, row and byte."""


class ShardFile:
    """One open file. Narrow columns (labels, digests) are in memory, wide ones are read by row.

    Rows are read at their offsets, not through a memory map: a file that shrinks under a map kills the process, and its
    pages count as the process's memory. Raises `Damaged` where the file is missing, of another size, or no Arrow file.
    """

    def __init__(self, path: Path, columns: list[Column], rows: int, facts: FileEntry):
        self.path, self.rows = path, rows
        self.wide = {column.name: column for column in columns if column.wide}
        try:
            self.fd = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise Damaged(f"{path} cannot be opened: {error.strerror}; {_MEND}") from None
        try:
            self._open(columns, facts)
        except BaseException:
            self.close()
            raise

    def _open(self, columns: list[Column], facts: FileEntry) -> None:
        size = os.fstat(self.fd).st_size
        if size != facts.bytes:
            verb = "truncated" if size < facts.bytes else "too long"
            raise Damaged(f"{self.path} is {verb}: {size} bytes, the manifest says {facts.bytes}; {_MEND}")
        import pyarrow as pa

        try:
            with pa.memory_map(str(self.path)) as file:
                batch = pa.ipc.open_file(file).get_batch(0)
                file.seek(0)
                head = file.read_buffer(1).address
                self._take(batch, head, columns)
                del batch
        except (pa.ArrowException, ValueError, KeyError, TypeError) as error:
            first = str(error).strip().splitlines()[0]
            raise Damaged(f"{self.path} is not a whole Arrow file ({first}); {_MEND}") from None

    def _take(self, batch: Any, head: int, columns: list[Column]) -> None:
        """Narrow columns into memory, and where each wide one lies."""
        about = json.loads(batch.schema.metadata[b"erw"])
        if about["format"] != FORMAT or batch.num_rows != self.rows:
            raise ValueError(f"{batch.num_rows} rows of {about['format']}, the manifest says {self.rows}")
        self.offsets: dict[str, int] = {}
        self.narrow: dict[str, Any] = {}
        self.checks: dict[str, np.ndarray] = {}
        for column in columns:
            array = batch.column(column.name)
            if column.dtype == "text":
                self.narrow[column.name] = array.to_pylist()
            elif column.wide:
                self.offsets[column.name] = array.values.buffers()[1].address - head
                self.checks[column.name] = self._whole(batch, column.name + DIGEST, np.uint64, (), head, about)
            else:
                values = self._whole(batch, column.name, np.uint8, (column.row_bytes,), head, about)
                tensor = torch.from_numpy(values).view(column.torch_dtype)
                self.narrow[column.name] = tensor.reshape(self.rows, *column.shape)

    def _whole(self, batch: Any, name: str, dtype: Any, shape: tuple[int, ...], head: int, about: dict[str, Any]) -> np.ndarray:
        """A copy of a narrow column, (rows, *shape), checked."""
        array = batch.column(name)
        buffer = (array.values if hasattr(array, "values") else array).buffers()[1]
        values = np.frombuffer(buffer, dtype, self.rows * int(np.prod(shape, dtype=int))).reshape(self.rows, *shape).copy()
        if f"{digest(values):016x}" != about["digests"][name]:
            raise self._wrong(f"column {name}", buffer.address - head, values.nbytes)
        return values

    def read(self, name: str, rows: np.ndarray, into: np.ndarray, places: np.ndarray) -> None:
        """Rows of a wide column into the rows ``places`` of ``into`` (W, row_bytes) uint8. Raises `Damaged`."""
        size, start, checks = self.wide[name].row_bytes, self.offsets[name], self.checks[name]
        for row, place in zip(rows.tolist(), places.tolist(), strict=True):
            target = into[place]
            self._fill(target, start + row * size, name, row)
            if digest(target) != int(checks[row]):
                raise self._wrong(f"column {name}, row {row}", start + row * size, size)

    def _wrong(self, where: str, first: int, size: int) -> Damaged:
        return Damaged(f"{self.path} is damaged in {where}, bytes {first} to {first + size - 1}: wrong checksum; {_MEND}")

    def _fill(self, target: np.ndarray, offset: int, name: str, row: int) -> None:
        done = 0
        while done < target.nbytes:
            try:
                got = os.preadv(self.fd, [target[done:]], offset + done)
            except OSError as error:
                raise Damaged(f"{self.path} cannot be read at byte {offset + done} (column {name}, row {row}):"
                              f" {error.strerror}; {_MEND}") from None  # fmt: skip
            if got == 0:
                raise Damaged(f"{self.path} is truncated: it ends before byte {offset + target.nbytes - 1} (column {name}, row"
                              f" {row}); {_MEND}")  # fmt: skip
            done += got

    def verify(self) -> None:
        """Read all rows. Raises `Damaged` at the first that is wrong."""
        for column in self.wide.values():
            row = np.empty((1, column.row_bytes), np.uint8)
            for number in range(self.rows):
                self.read(column.name, np.array([number]), row, np.zeros(1, np.int64))

    def will_need(self) -> None:
        """Ask the kernel to bring the file into memory, without waiting."""
        os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        """Give the descriptor back."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __del__(self):
        self.close()


def tensor_of(column: Column, raw: np.ndarray) -> Tensor:
    """(W, *shape) of the column's dtype over (W, row_bytes) uint8, without a copy."""
    return torch.from_numpy(raw).view(column.torch_dtype).view(len(raw), *column.shape)
