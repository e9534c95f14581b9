"""Where a store lies: a folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from erw.data.store.manifest import MANIFEST, Manifest, read_manifest
from erw.data.store.reader import ShardFile
from erw.data.store.writer import file_name
from erw.errors import UserError


class Place(Protocol):
    """Finds the files of a store."""

    def manifest(self) -> Manifest:
        """Of the dataset. Raises `UserError` where there is none."""
        ...

    def open(self, shard: int, group: str) -> ShardFile:
        """A file of the ``shard``-th entry of the manifest."""
        ...

    def prefetch(self, wanted: Sequence[tuple[int, str]]) -> None:
        """Bring files of (shard, group) near, in the background."""
        ...


class LocalPlace:
    """A folder on a disk."""

    def __init__(self, path: str):
        self.path = Path(path)
        if not path or not self.path.is_dir():
            raise UserError(f"--data.path '{path}' is not a folder: name one that erw prepare made")
        self._manifest = read_manifest(self.path)
        if self._manifest is None:
            raise UserError(f"{self.path / MANIFEST} is missing: {self.path} is not a prepared dataset (a preparation that was"
                            " interrupted goes on with the same erw prepare)")  # fmt: skip

    def __str__(self) -> str:
        return str(self.path)

    def manifest(self) -> Manifest:
        """See `Place`."""
        return self._manifest

    def open(self, shard: int, group: str) -> ShardFile:
        """See `Place`."""
        entry = self._manifest.shards[shard]
        columns = [column for column in self._manifest.columns if column.group == group]
        return ShardFile(self.path / file_name(group, entry.index), columns, entry.rows, entry.files[group])

    def prefetch(self, wanted: Sequence[tuple[int, str]]) -> None:
        """See `Place`."""


def open_place(path: str, cache: str = "", cache_bytes: int = 0) -> Place:
    """The place at ``path``."""
    return LocalPlace(path)
