"""Writing a store: shards as whole files, in any order and by any number of processes; then the manifest."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from erw.data.store.columns import Column, arrow_batch, column_of, row_bytes
from erw.data.store.manifest import FORMAT, MANIFEST, VERSION, FileEntry, Manifest, ShardEntry, TeacherEntry, check_manifest
from erw.errors import UserError
from erw.files import json_bytes, whole
from erw.settings import to_dict


def file_name(group: str, index: int) -> str:
    """Of one group of one shard."""
    return f"{group}-{index:05d}.arrow"


def write_shard(folder: Path, index: int, values: dict[str, Tensor | list[str]],
                groups: dict[str, str] | None = None) -> dict[str, Any]:  # fmt: skip
    """Write shard ``index`` of the store in ``folder``: for each column (B, *shape) numbers, or B texts.

    ``groups`` says in which group's file a column goes; by default `latents`, `labels` and `names` go together and each
    other column alone. Files are renamed into place when whole, and their bytes depend on ``values`` alone. Returns what
    `seal` wants to know of the shard, as JSON. Raises `UserError` where the disk is full or refuses.
    """
    columns = [column_of(name, value, (groups or {}).get(name)) for name, value in values.items()]
    rows = {len(value) for value in values.values()}
    if len(rows) != 1 or 0 in rows:
        raise ValueError(f"columns of {', '.join(map(str, rows))} rows: a shard has as many in each, and at least one")
    try:
        files = {
            group: _write_group(folder, index, group, [column for column in columns if column.group == group], values)
            for group in dict.fromkeys(column.group for column in columns)
        }
    except OSError as error:
        raise UserError(f"{folder} cannot take shard {index}: {error.strerror or error}") from None
    entry = ShardEntry(index=index, rows=rows.pop(), files=files)
    return to_dict(entry) | {"columns": [to_dict(column) for column in columns]}


def _write_group(folder: Path, index: int, group: str, columns: list[Column], values: dict[str, Any]) -> FileEntry:
    import pyarrow as pa

    raw = {c.name: values[c.name] if c.dtype == "text" else row_bytes(c, values[c.name]) for c in columns}
    batch = arrow_batch(columns, raw, {"format": FORMAT, "version": VERSION, "group": group, "shard": index})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as stream:
        stream.write_batch(batch)
    content = sink.getvalue()
    path = folder / file_name(group, index)
    try:
        with whole(path) as file:
            file.write(content)
    except OSError:
        path.with_name(f".{path.name}.partial").unlink(missing_ok=True)  # on a full disk others need its space
        raise
    return FileEntry(bytes=content.size, sha256=hashlib.sha256(content).hexdigest())


def seal(folder: Path, shards: Iterable[dict[str, Any]], num_classes: int, teachers: Iterable[TeacherEntry] = (),
         facts: dict[str, Any] | None = None) -> Manifest:  # fmt: skip
    """Make the folder a dataset: write the manifest of ``shards``, which `write_shard` returned, in the order of rows.

    ``facts`` is JSON about VAE, crop, versions, images left out ... Raises `UserError` where the disk refuses, ValueError
    where the shards do not fit together.
    """
    shards = list(shards)
    columns = shards[0]["columns"]
    for shard in shards:
        if shard["columns"] != columns:
            raise ValueError(f"shard {shard['index']} has other columns than shard {shards[0]['index']}")
    content = {
        "format": FORMAT,
        "version": VERSION,
        "num_classes": num_classes,
        "rows": sum(shard["rows"] for shard in shards),
        "columns": columns,
        "shards": [{name: shard[name] for name in ("index", "rows", "files")} for shard in shards],
        "teachers": [to_dict(teacher) for teacher in teachers],
        "facts": facts or {},
    }
    manifest = check_manifest(content, str(folder / MANIFEST))
    try:
        with whole(folder / MANIFEST) as file:
            file.write(json_bytes(content))
    except OSError as error:
        raise UserError(f"{folder / MANIFEST} cannot be written: {error.strerror or error}") from None
    return manifest
