"""Files that are whole or not there: what a killed process leaves behind is never taken for finished work."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def whole(path: Path) -> Iterator[IO[bytes]]:
    """A binary file to write in a folder that exists, synced and renamed to ``path`` at the end, and only then."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def plain_name(name: object) -> bool:
    """Whether ``name``, read from a file, means a file of the same folder and cannot mean another."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0")


def json_bytes(data: dict[str, Any]) -> bytes:
    """Indented, a line at the end. Raises ValueError for NaN and infinity, which JSON does not have."""
    return (json.dumps(data, indent=1, allow_nan=False) + "\n").encode()
