"""Where a store lies, a folder or object storage, and how its files come from there."""

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from erw.data.store.manifest import MANIFEST, Manifest, read_manifest
from erw.data.store.reader import ShardFile
from erw.data.store.writer import file_name
from erw.errors import UserError

Wanted = tuple[int, str]  # place in the manifest's list of shards, and group
_THREADS = 4  # that fetch, in each process


class Place:
    """Opens the files of a store; subclasses say where they are. ``evicts``: it deletes files to make room for others."""

    manifest: Manifest
    evicts = False

    def __init__(self, name: str):
        self.name = name
        self._background = _Background()
        self._near: set[Wanted] = set()

    def __str__(self) -> str:
        return self.name

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_background": _Background(), "_near": set()}

    def open(self, shard: int, group: str) -> ShardFile:
        """A file of the ``shard``-th entry of the manifest. Raises `Damaged`, or `UserError` where it cannot be had."""
        raise NotImplementedError

    def bring(self, shard: int, group: str) -> None:
        """Bring a file near; in a background thread. What goes wrong here is said by `open`."""
        raise NotImplementedError

    def prefetch(self, wanted: Sequence[Wanted]) -> None:
        """Bring files near, in the background; those of the last call are so already."""
        before, self._near = self._near, set(wanted)
        for place in wanted:
            if place not in before:
                self._background.do(self._bring_if_near, place)

    def _bring_if_near(self, place: Wanted) -> None:
        """Nothing where the reader has got past it: what had made room for others would be fetched again for nobody."""
        if place in self._near:
            self.bring(*place)

    def shard_file(self, path: Path, shard: int, group: str, name: str | None = None) -> ShardFile:
        """The local file ``path`` as a shard's; ``name`` is what messages call it."""
        columns = [column for column in self.manifest.columns if column.group == group]
        return ShardFile(path, columns, self.manifest.shards[shard], name)

    def file_name(self, shard: int, group: str) -> str:
        """Within the store."""
        return file_name(group, self.manifest.shards[shard].index)


class LocalPlace(Place):
    """A folder on a disk."""

    def __init__(self, path: str):
        super().__init__(path)
        self.path = Path(path)
        if not path or not self.path.is_dir():
            raise UserError(f"--data.path '{path}' is not a folder: name one that erw prepare made")
        manifest = read_manifest(self.path)
        if manifest is None:
            raise UserError(f"{self.path / MANIFEST} is missing: {self.path} is not a prepared dataset (was erw prepare"
                            " interrupted? the same command goes on)")  # fmt: skip
        self.manifest = manifest

    def open(self, shard: int, group: str) -> ShardFile:
        """See `Place`."""
        return self.shard_file(self.path / self.file_name(shard, group), shard, group)

    def bring(self, shard: int, group: str) -> None:
        """From the disk into memory."""
        file = os.open(self.path / self.file_name(shard, group), os.O_RDONLY)
        try:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(file)


class _Background:
    """Daemon threads that start with the first task, in each process for itself: nobody waits for them at the end."""

    def __init__(self):
        self._process, self._tasks = 0, None

    def do(self, task: Callable[..., None], *arguments) -> None:
        if self._process != os.getpid():
            self._process, self._tasks = os.getpid(), queue.SimpleQueue()
            for _ in range(_THREADS):
                threading.Thread(target=_work, args=(self._tasks,), daemon=True).start()
        self._tasks.put((task, arguments))

    def __del__(self):
        if self._process == os.getpid():
            for _ in range(_THREADS):
                self._tasks.put(None)


def _work(tasks: queue.SimpleQueue) -> None:
    while (found := tasks.get()) is not None:
        with contextlib.suppress(UserError, OSError):
            found[0](*found[1])
        del found  # it holds the place, whose end is what ends this thread
