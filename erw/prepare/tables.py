"""Image data sets as tables: parquet as Hugging Face's hub holds them, or Arrow files as its ``save_to_disk`` writes them.

A table has a column of images (a struct with ``bytes``, or plain binary) and one of labels (whole numbers, whose names
the schema may tell, or text). Rows come in groups, and a group is read whole: so it stays together in the order of work.
"""

import json
import os
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np

from erw.errors import UserError
from erw.prepare.listing import ONE_CLASS, SPLITS, SUFFIXES, Listing

_TABLES = (".parquet", ".arrow")
_IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp")
_LABELS = ("label", "labels", "fine_label", "cls", "class", "target")
_GROUPS_KEPT = 2  # row groups in memory: readers may be on either side of a border


def tables_in(path: Path) -> list[Path]:
    """The parquet or Arrow files that ``path`` is or holds, by name; none where there are images beside them."""
    if path.is_file():
        return [path] if path.suffix in _TABLES else []
    found = []
    for top, _, files in os.walk(path):
        if any(Path(name).suffix.lower() in SUFFIXES for name in files):
            return []
        found += [Path(top, name) for name in files if Path(name).suffix in _TABLES and not name.startswith((".", "cache-"))]
    return sorted(found)


class TableSource:
    """Rows of the tables ``files`` below ``path``."""

    def __init__(self, path: Path, files: list[Path], split: str | None):
        self.path = path
        self.files = _of_split(path, files, split)
        tables = [_open(file) for file in self.files]
        self.images, self.labels, names = _columns(tables[0].schema, self.files[0])
        lengths = [table.lengths for table in tables]
        self._groups = [(number, group) for number, many in enumerate(lengths) for group in range(len(many))]
        blocks = [length for many in lengths for length in many]
        self._starts = np.concatenate([[0], np.cumsum(blocks)]).astype(np.int64)
        if not self._starts[-1]:
            raise UserError(f"{path} has no rows")
        labels, classes = self._labels(tables, names)
        width = max(6, len(str(max(max(many, default=0) for many in lengths))))
        rows = ((file, i) for file, many in zip(self.files, lengths, strict=True) for i in range(sum(many)))
        here = path if path.is_dir() else path.parent
        self.listing = Listing(
            classes=classes,
            names=[f"{file.relative_to(here)}:{i:0{width}d}" for file, i in rows],
            labels=labels,
            sizes=np.zeros(len(labels), np.int64),
            blocks=blocks,
        )
        self._fresh()

    def _fresh(self) -> None:
        self._lock, self._kept, self._tables = threading.Lock(), OrderedDict(), {}

    def __getstate__(self):
        return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_kept", "_tables")}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._fresh()

    def _labels(self, tables: list, names: list[str] | None) -> tuple[np.ndarray, list[str]]:
        """((N,) labels, names of the classes). Text is sorted and numbered."""
        if self.labels is None:
            return np.zeros(int(self._starts[-1]), np.int64), [ONE_CLASS]
        found = np.concatenate([table.column(self.labels) for table in tables])
        if found.dtype.kind not in "iu":
            if any(value is None for value in found):
                raise UserError(f"{self.path}: column {self.labels} has rows without a label: fill or remove them")
            names, found = np.unique(found.astype(str), return_inverse=True)
            return found.astype(np.int64), names.tolist()
        highest = int(found.max())
        names = names or [str(i) for i in range(highest + 1)]
        if int(found.min()) < 0 or highest >= len(names):
            raise UserError(
                f"{self.path}: labels in column {self.labels} run from {found.min()} to {highest}, classes from 0 to"
                f" {len(names) - 1}: a test split without labels? take another with --split"
            )
        return found.astype(np.int64), names

    def read(self, number: int) -> bytes:
        """See `erw.prepare.sources.Source`."""
        block = int(np.searchsorted(self._starts, number, side="right")) - 1
        with self._lock:
            if block not in self._kept:
                file, group = self._groups[block]
                table = self._tables.get(file) or self._tables.setdefault(file, _open(self.files[file]))
                self._kept[block] = table.group(group, self.images)
                while len(self._kept) > _GROUPS_KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(block)
            cell = self._kept[block][number - int(self._starts[block])].as_py()
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if data is None:
            raise OSError("the row holds no bytes, only the path of a file elsewhere")
        return data


def _of_split(path: Path, files: list[Path], split: str | None) -> list[Path]:
    """Those of ``files`` that belong to ``split``: train-00000-of-00009.parquet, or train/anything.parquet."""
    if path.is_file():
        return files
    named = {file: {file.stem.split("-")[0], *file.relative_to(path).parts[:-1]} for file in files}
    have = sorted(set().union(*named.values()) & SPLITS)
    if split is None and len(have) > 1:
        raise UserError(f"{path} has the splits {', '.join(have)}: take one with --split")
    chosen = [file for file in files if split is None or split in named[file]]
    if not chosen:
        raise UserError(f"--split {split} is not in {path}; it has {', '.join(have) or 'none by name'}")
    return chosen


def _columns(schema, file: Path) -> tuple[str, str | None, list[str] | None]:
    """(column of images, column of labels, names of the classes) of an Arrow schema."""
    import pyarrow as pa

    def image(kind) -> bool:
        struct = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
        return struct or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    images = [field.name for field in schema if image(field.type)]
    images = [name for name in _IMAGES if name in images] or images
    if not images:
        raise UserError(f"{file} has no column of images (bytes); its columns: {', '.join(schema.names)}")
    labels = next((name for name in _LABELS if name in schema.names), None)
    return images[0], labels, _class_names(schema, labels)


def _class_names(schema, labels: str | None) -> list[str] | None:
    """What Hugging Face's library notes in the schema."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return list(features[labels]["names"])
    except (KeyError, ValueError, TypeError):
        return None


class _Parquet:
    def __init__(self, file: Path):
        import pyarrow.parquet

        self._file = pyarrow.parquet.ParquetFile(file)
        self.schema = self._file.schema_arrow
        meta = self._file.metadata
        self.lengths = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]

    def column(self, name: str) -> np.ndarray:
        return self._file.read([name])[name].to_numpy()

    def group(self, number: int, name: str):
        return self._file.read_row_group(number, columns=[name])[name]


class _Arrow:
    """Mapped: only what is asked for is read."""

    def __init__(self, file: Path):
        import pyarrow as pa

        mapped = pa.memory_map(str(file))
        try:
            reader = pa.ipc.open_stream(mapped)
        except pa.ArrowInvalid:
            reader = pa.ipc.open_file(mapped)
        self.schema = reader.schema
        self._batches = list(reader) if hasattr(reader, "read_next_batch") else _batches(reader)
        self.lengths = [batch.num_rows for batch in self._batches]

    def column(self, name: str) -> np.ndarray:
        return np.concatenate([batch.column(name).to_numpy(zero_copy_only=False) for batch in self._batches])

    def group(self, number: int, name: str):
        return self._batches[number].column(name)


def _batches(reader) -> list:
    return [reader.get_batch(i) for i in range(reader.num_record_batches)]


def _open(file: Path) -> "_Parquet | _Arrow":
    import pyarrow as pa

    try:
        return _Parquet(file) if file.suffix == ".parquet" else _Arrow(file)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file} is not a whole {file.suffix[1:]} file ({error}): download or write it again") from None
