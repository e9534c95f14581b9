"""Files that are whole or not there: what a killed process leaves behind is never taken for finished work. The lock of a
folder that one process at a time may write."""

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from erw.errors import RankError, UserError


@contextmanager
def whole(path: Path) -> Iterator[IO[bytes]]:
    """A binary file to write in a folder that exists, synced and renamed to ``path`` at the end, and only then."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


@contextmanager
def kept(path: Path) -> Iterator[IO[bytes]]:
    """`whole`. Raises `RankError` where the disk refuses."""
    try:
        with whole(path) as file:
            yield file
    except OSError as error:
        reason = error.strerror or error
        raise RankError(f"{path} cannot be written: {reason}; finished images are kept, the same command goes on") from None


def plain_name(name: object) -> bool:
    """Whether ``name``, read from a file, means a file of the same folder and cannot mean another."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0")


def as_file_name(name: str) -> str:
    """``name`` as far as a file can have it: letters, digits, dots and hyphens stay, all else becomes a hyphen."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", name)


def json_bytes(data: dict[str, Any]) -> bytes:
    """Indented, a line at the end. Raises ValueError for NaN and infinity, which JSON does not have."""
    return (json.dumps(data, indent=1, allow_nan=False) + "\n").encode()


def lock(folder: Path, command: str) -> IO[bytes]:
    """Make ``folder`` and hold it for ``command`` until the returned file is closed or the process ends.

    Raises `UserError` if another process holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("wb")
    except OSError as error:
        raise UserError(f"--out {folder} cannot be written: {error.strerror or error}") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise UserError(f"another {command} is at work in {folder}: wait for it, stop it, or name another --out") from None
    return file
