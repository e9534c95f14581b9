"""What a row holds: named columns of one dtype and shape each, and how Arrow stores them."""

import json
import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from erw.errors import UserError

# Arrow has no bfloat16 and no float8: their bits are stored as integers, and the field says what they are.
DTYPES: dict[str, tuple[torch.dtype | None, str]] = {
    "float32": (torch.float32, "float"),
    "float16": (torch.float16, "halffloat"),
    "bfloat16": (torch.bfloat16, "uint16"),
    "float8_e4m3fn": (torch.float8_e4m3fn, "uint8"),
    "uint8": (torch.uint8, "uint8"),
    "int32": (torch.int32, "int32"),
    "int64": (torch.int64, "int64"),
    "text": (None, "string"),
}
FIRST_GROUP, _TOGETHER = "latents", ("latents", "labels", "names")
WIDE = 256  # bytes a row from which on a value has a digest of its own and is read on demand
DIGEST = ".digest"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, kw_only=True)
class Column:
    """One value a row: ``shape`` of ``dtype`` (a key of ``DTYPES``), in the files of ``group``."""

    name: str
    dtype: str
    shape: tuple[int, ...] = ()
    group: str = FIRST_GROUP

    def __post_init__(self):
        for name in (self.name, self.group):
            if not _NAME.fullmatch(name) or name.endswith(DIGEST):
                raise UserError(
                    f"'{name}' cannot name a column: only letters, digits, '.', '_' and '-', not with {DIGEST} last"
                )
        if self.dtype not in DTYPES or (self.dtype == "text" and self.shape) or any(n < 1 for n in self.shape):
            raise UserError(f"column {self.name} cannot hold {self.shape} of {self.dtype}: known are {', '.join(DTYPES)}")

    @property
    def torch_dtype(self) -> torch.dtype:
        """Of numbers."""
        return DTYPES[self.dtype][0]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row; 0 for text."""
        return 0 if self.dtype == "text" else math.prod(self.shape) * self.torch_dtype.itemsize

    @property
    def wide(self) -> bool:
        """Whether rows are read one by one, each with its digest; the rest is read whole when a shard is opened."""
        return self.row_bytes >= WIDE


def rows_per_shard(columns: list[Column], target: int = 128 << 20) -> int:
    """A power of two, 64 at least, that makes the largest file of a shard about ``target`` bytes."""
    groups = {c.group for c in columns}
    widest = max(sum(c.row_bytes for c in columns if c.group == group) for group in groups)
    return max(64, 1 << max(0, int(math.log2(max(1, target // max(1, widest))))))


def column_of(name: str, value: Any, group: str | None = None) -> Column:
    """The column that a shard's ``value`` fills: (B, *shape) numbers, or a list of B texts."""
    group = group or (FIRST_GROUP if name in _TOGETHER else name)
    if isinstance(value, list):
        return Column(name=name, dtype="text", group=group)
    dtype = next((known for known, (torch_dtype, _) in DTYPES.items() if torch_dtype == value.dtype), str(value.dtype))
    return Column(name=name, dtype=dtype, shape=tuple(value.shape[1:]), group=group)


def row_bytes(column: Column, value: Tensor) -> np.ndarray:
    """(B, row_bytes) uint8 of the numbers (B, *shape)."""
    flat = value.detach().cpu().contiguous().reshape(len(value), -1)
    return flat.view(torch.uint8).numpy()


def digest(data: Any) -> int:
    """64-bit checksum (XXH3) of bytes."""
    return xxhash.xxh3_64_intdigest(data)


def digests(rows: np.ndarray) -> np.ndarray:
    """(B,) uint64 checksums of (B, bytes) uint8."""
    return np.fromiter((digest(row) for row in rows), np.uint64, len(rows))


def arrow_batch(columns: list[Column], values: dict[str, Any], metadata: dict[str, Any]):
    """A `pyarrow.RecordBatch` of one group: ``values`` are (B, row_bytes) uint8, or lists of text.

    A wide column is followed by one of its rows' digests; digests of whole narrow columns go into the metadata.
    """
    import pyarrow as pa

    fields, arrays, whole = [], [], {}
    for column in columns:
        value, about = values[column.name], {"dtype": column.dtype, "shape": list(column.shape)}
        arrays.append(_arrow_array(column, value))
        fields.append(pa.field(column.name, arrays[-1].type, nullable=False, metadata={"erw": json.dumps(about)}))
        if column.wide:
            checks, name = digests(value), column.name + DIGEST
            arrays.append(pa.array(checks))
            fields.append(pa.field(name, pa.uint64(), nullable=False))
            whole[name] = digest(checks)
        elif column.dtype != "text":
            whole[column.name] = digest(value)
    about = metadata | {"digests": {name: f"{value:016x}" for name, value in whole.items()}}
    return pa.record_batch(arrays, schema=pa.schema(fields, {"erw": json.dumps(about)}))


def _arrow_array(column: Column, value: Any):
    """Of one number, a list of numbers or a text a row; bytes are not copied."""
    import pyarrow as pa

    if column.dtype == "text":
        return pa.array(value, pa.string())
    count = value.size // column.torch_dtype.itemsize
    numbers = pa.Array.from_buffers(pa.type_for_alias(DTYPES[column.dtype][1]), count, [None, pa.py_buffer(value)])
    return pa.FixedSizeListArray.from_arrays(numbers, math.prod(column.shape)) if column.shape else numbers
