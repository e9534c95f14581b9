"""A folder on this machine with shards from afar, shared by all its processes, of bounded size."""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from erw.errors import RankError, UserError

_LOCKS = ".locks"


class ShardCache:
    """Whole files in ``folder``, ``limit`` bytes of them at most; 0: as many as fit on the disk.

    Of several processes that want a file one fetches it, the others wait. What was used longest ago goes first when room is
    needed; who has it open reads on. Raises `UserError` where the folder cannot be used.
    """

    def __init__(self, folder: Path, limit: int):
        self.folder, self.limit = folder, limit
        try:
            (folder / _LOCKS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unusable(error, UserError) from None

    def get(self, name: str, size: int, fetch: Callable[[Path], None], wait: bool = True) -> Path | None:
        """The file ``name``; where it is not there, ``fetch`` writes its ``size`` bytes into the path that it is given.

        Without ``wait``, None if another process is fetching it.
        """
        path = self.folder / name
        try:
            if not self._use(path):
                with self._lock(name, wait) as held:
                    if not held:
                        return None
                    if not self._use(path):
                        self._fetch(path, size, fetch)
            return path
        except OSError as error:
            raise self._unusable(error, RankError) from None

    def _fetch(self, path: Path, size: int, fetch: Callable[[Path], None]) -> None:
        partial = path.with_name(f".{path.name}.{size}.partial")  # counts as of its final size from now on
        with self._lock("room", wait=True):
            self._make_room(size)
            partial.touch()
        try:
            fetch(partial)
            with self._lock("room", wait=True):  # renamed while another counts, it would be counted by neither name
                os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    def _use(self, path: Path) -> bool:
        """Whether it is there; its time of use is now."""
        try:
            os.utime(path)
            return True
        except FileNotFoundError:
            return False

    def _make_room(self, size: int) -> None:
        """Delete what killed processes left, then the files used longest ago until ``size`` more bytes are within the limit."""
        taken, files = size, []
        for path in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # a fetch that failed took it away just now
                if path.name.endswith(".partial"):
                    taken += 0 if self._remove_left(path) else int(path.name.split(".")[-2])
                elif path.is_file():
                    about = path.stat()
                    taken += about.st_size
                    files.append((about.st_mtime_ns, about.st_size, path))
        for _, held, path in sorted(files):
            if self.limit and taken > self.limit:
                path.unlink(missing_ok=True)
                taken -= held

    def _remove_left(self, partial: Path) -> bool:
        """Delete a partial file, unless somebody is writing it."""
        with self._lock(partial.name.removeprefix(".").rsplit(".", 2)[0], wait=False) as held:
            if held:
                partial.unlink(missing_ok=True)
            return held

    @contextlib.contextmanager
    def _lock(self, name: str, wait: bool) -> Iterator[bool]:
        """Hold the lock of ``name``, which the kernel releases if this process dies. False: another holds it."""
        with (self.folder / _LOCKS / name).open("wb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            yield True

    def _unusable(self, error: OSError, kind: type[UserError]) -> UserError:
        return kind(f"--data.cache {self.folder}: {error.strerror or error}: name a folder with room, or lower --data.cache_gb")
