"""A store in object storage (S3, GCS, HTTP ...: whatever fsspec reads), through a cache on this machine."""

import contextlib
import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from erw.cache import cache_folder
from erw.data.store.cache import ShardCache
from erw.data.store.manifest import MANIFEST, parse_manifest
from erw.data.store.places import Place, Wanted
from erw.data.store.reader import Damaged, Missing, ShardFile
from erw.errors import RankError, UserError

T = TypeVar("T")
PAUSES = (0.5, 2.0, 8.0)  # seconds before each further try
_EVICTIONS = 10
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotImplementedError, ImportError)  # trying again is no use
_OPTIONS: dict[str, dict[str, Any]] = {
    # One retrier is enough, and it is ours.
    "s3": {"config_kwargs": {"retries": {"total_max_attempts": 1}, "connect_timeout": 10, "read_timeout": 60}},
}


class RemotePlace(Place):
    """The store at a URL. Each file is fetched whole, once, into a cache that the processes of this machine share.

    A file whose size or checksums are wrong is fetched again; tries are repeated after `PAUSES`. Raises `UserError` where
    the storage cannot be reached, refuses, or has no such file.
    """

    evicts = True

    def __init__(self, url: str, cache: str, cache_bytes: int):
        super().__init__(url.rstrip("/"))
        text = self._try(MANIFEST, lambda: self._files().cat_file(self._path(MANIFEST)).decode())
        self.manifest = parse_manifest(text, f"{self.name}/{MANIFEST}")
        folder = Path(cache).expanduser() if cache else cache_folder() / "shards"
        # A dataset prepared anew at the same URL must not meet the files of the old one.
        self.version = hashlib.sha256(f"{self.name}\n{text}".encode()).hexdigest()[:12]
        self.cache = ShardCache(folder, cache_bytes)

    def open(self, shard: int, group: str) -> ShardFile:
        """See `Place`."""
        for _ in range(_EVICTIONS):
            path = self._get(shard, group)
            with contextlib.suppress(Missing):  # another process made room with it just now
                return self.shard_file(path, shard, group)
        raise UserError(f"--data.cache_gb {self.cache.limit / 1e9:g} is too small: {path} was removed before it was open")

    def bring(self, shard: int, group: str) -> None:
        """From afar into the cache, unless another process is at it."""
        self._get(shard, group, wait=False)

    def prefetch(self, wanted: Sequence[Wanted]) -> None:
        """See `Place`. Raises `UserError` where the cache is too small to hold them."""
        size = sum(self.manifest.shards[shard].files[group].bytes for shard, group in wanted)
        if self.cache.limit and size > self.cache.limit:
            raise UserError(f"--data.cache_gb {self.cache.limit / 1e9:g} is less than the {size / 1e9:.3g} GB of two windows of"
                            " shards: raise it, or lower --data.window")  # fmt: skip
        super().prefetch(wanted)

    def _get(self, shard: int, group: str, wait: bool = True) -> Path | None:
        name = self.file_name(shard, group)

        def fetch(path: Path) -> None:
            self._try(name, lambda: self._download(name, path, shard, group))

        size = self.manifest.shards[shard].files[group].bytes
        return self.cache.get(f"{self.version}-{name}", size, fetch, wait)

    def _download(self, name: str, path: Path, shard: int, group: str) -> None:
        self._files().get_file(self._path(name), str(path))
        file = self.shard_file(path, shard, group, f"{self.name}/{name}")
        try:
            file.verify()
        finally:
            file.close()

    def _try(self, name: str, task: Callable[[], T]) -> T:
        for pause in (*PAUSES, None):
            try:
                return task()
            except Damaged:
                if pause is None:
                    raise
            except UserError:
                raise
            except Exception as error:  # each kind of storage raises its own
                if isinstance(error, _FINAL) or pause is None:
                    raise self._unreachable(name, error, pause is None) from None
            time.sleep(pause)
        raise AssertionError("the last try returns or raises")

    def _unreachable(self, name: str, error: Exception, gave_up: bool) -> UserError:
        first = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
        kind = UserError if name == MANIFEST else RankError
        if isinstance(error, FileNotFoundError):
            mend = "is --data.path right?" if name == MANIFEST else "copy the dataset again"
            return kind(f"{self.name}/{name} is missing: {mend}")
        if isinstance(error, (ImportError, ValueError)):
            return kind(f"--data.path {self.name} cannot be read: {first} (for s3:// pip install 'erw[s3]')")
        tries = f" after {len(PAUSES) + 1} tries" if gave_up else ""
        return kind(f"{self.name}/{name} cannot be fetched{tries}: {first}: check the address, the credentials and the network")

    def _files(self):
        """The file system; fsspec keeps one for each process."""
        import fsspec

        protocol = self.name.split("://")[0]
        return fsspec.filesystem(protocol, **_OPTIONS.get(protocol, {}))

    def _path(self, name: str) -> str:
        return f"{self.name}/{name}"
