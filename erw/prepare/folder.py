"""A folder of images, a folder a class."""

import os
from collections.abc import Iterator
from pathlib import Path

from erw.errors import UserError
from erw.prepare.classes import File, by_class


class FolderSource:
    """Links to files and folders are followed, as data sets made of links are common."""

    def __init__(self, path: Path, split: str | None):
        self.path = path
        folders: list[str] = []
        self.listing, _ = by_class(path, split, self._files(folders), folders)

    def _files(self, folders: list[str]) -> Iterator[File]:
        seen = set()
        for top, below, files in os.walk(self.path, followlinks=True, onerror=_refuse):
            real = os.path.realpath(top)
            if real in seen:
                raise UserError(f"{top} is a link back to {real}: remove it")
            seen.add(real)
            inner = os.path.relpath(top, self.path)
            prefix = "" if inner == "." else inner.replace(os.sep, "/") + "/"
            folders += [prefix + name for name in below]
            for name in files:
                yield File(prefix + name, _size(os.path.join(top, name)))

    def read(self, number: int) -> bytes:
        """See `erw.prepare.sources.Source`."""
        return (self.path / self.listing.names[number]).read_bytes()


def _size(file: str) -> int:
    try:
        return os.stat(file).st_size
    except OSError:  # a link to nothing: reading it will say so, by name
        return 0


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename} cannot be listed: {error.strerror}")
