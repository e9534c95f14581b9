"""A store as the trainer's dataset."""

import os
from collections import OrderedDict
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from erw.data.order import Blocks
from erw.data.store.columns import Column
from erw.data.store.manifest import Manifest, TeacherEntry
from erw.data.store.places import LocalPlace, Place
from erw.data.store.reader import ShardFile, tensor_of
from erw.data.store.remote import RemotePlace
from erw.errors import UserError
from erw.settings import from_dict
from erw.types import CachedTeacher, StoredLatents

_OPEN_FILES = 512  # kept open; each holds its labels and digests, 24 bytes a row, and a descriptor

_WINDOWS_IN_USE = 3  # the one that is read, the one before it, whose last images share a batch with its first, and the next


class StoreDataset:
    """The prepared dataset at ``path``: a folder, or a URL that fsspec understands (``s3://bucket/name``).

    ``window`` shards are shuffled together (`erw.data.order.Blocks`); shards of a URL are kept in the folder ``cache``, of
    ``cache_bytes`` at most. Files are opened on first use, in each process for itself. Raises `UserError` for a manifest
    that is missing, broken or of a newer version, `Damaged` for shards that are not what was written.
    """

    def __init__(self, path: str, window: int = 16, cache: str = "", cache_bytes: int = 0):
        self.place: Place = RemotePlace(path, cache, cache_bytes) if "://" in path else LocalPlace(path)
        self.manifest: Manifest = self.place.manifest
        self.num_classes = self.manifest.num_classes
        latents = self.column("latents")
        if len(latents.shape) != 3 or latents.shape[1] != latents.shape[2]:
            raise UserError(f"{path}: latents of shape {latents.shape} are not (channels, side, side)")
        self.channels, self.size = latents.shape[0], latents.shape[1]
        self.stored = self._described()
        self._pixels = "images" if self.manifest.column("images") else "latents"
        self.has_images = self._pixels == "images" or latents.dtype == "uint8"
        self.teachers: dict[str, TeacherEntry] = {entry.name: entry for entry in self.manifest.teachers}
        self.cached: dict[str, CachedTeacher] = {name: entry.cached for name, entry in self.teachers.items()}
        self._starts = np.cumsum([0, *(shard.rows for shard in self.manifest.shards)])
        self.blocks = Blocks(tuple(shard.rows for shard in self.manifest.shards), window)
        self._files: OrderedDict[tuple[int, str], ShardFile] = OrderedDict()
        self._process = os.getpid()

    def column(self, name: str) -> Column:
        """By name. Raises `UserError` where there is none."""
        column = self.manifest.column(name)
        if column is None:
            raise UserError(f"{self.place} has no column {name}; it has {', '.join(c.name for c in self.manifest.columns)}")
        return column

    def _described(self) -> StoredLatents | None:
        """What the manifest's facts say that the latents are."""
        try:
            return from_dict(StoredLatents, self.manifest.facts["latents"]) if "latents" in self.manifest.facts else None
        except UserError as error:
            raise UserError(f"{self.place}: the manifest's facts about latents: {error}") from None

    def __len__(self) -> int:
        return self.manifest.rows

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_files": OrderedDict()}

    def fetch(self, rows: np.ndarray) -> dict[str, Tensor]:
        """See `erw.data.stream.Dataset`: latents fp32, or uint8 where they are pixels; labels int64."""
        latents = self.read("latents", rows)
        latents = latents if latents.dtype == torch.uint8 else latents.float()
        return {"latents": latents, "labels": self.read("labels", rows).long()}

    def features(self, name: str, rows: np.ndarray) -> Tensor:
        """(W, N, D) tokens of one teacher in their stored dtype."""
        return self.read(self.teachers[name].tokens, rows)

    def class_tokens(self, name: str, rows: np.ndarray) -> Tensor:
        """(W, D) class tokens of one teacher in their stored dtype."""
        return self.read(self.teachers[name].cls, rows)

    def images(self, rows: np.ndarray) -> Tensor:
        """(W, 3, H, W) uint8."""
        return self.read(self._pixels, rows)

    def read(self, name: str, rows: np.ndarray) -> Tensor:
        """(W, *shape) of any column of numbers, in its own dtype."""
        column = self.column(name)
        shards = np.searchsorted(self._starts, rows, side="right") - 1
        inside = rows - self._starts[shards]
        raw = torch.empty((len(rows), column.row_bytes), dtype=torch.uint8).numpy() if column.wide else None
        narrow = None if column.wide else torch.empty((len(rows), *column.shape), dtype=column.torch_dtype)
        for shard in np.unique(shards).tolist():
            places = np.flatnonzero(shards == shard)
            places = places[np.argsort(inside[places], kind="stable")]  # in the order of the file
            file = self._file(shard, column.group)
            if column.wide:
                file.read(name, inside[places], raw, places)
            else:
                narrow[torch.from_numpy(places)] = file.narrow[name][torch.from_numpy(inside[places])]
        return tensor_of(column, raw) if column.wide else narrow

    def texts(self, name: str, rows: np.ndarray) -> list[str]:
        """Values of a column of text."""
        column = self.column(name)
        shards = np.searchsorted(self._starts, rows, side="right") - 1
        return [self._file(s, column.group).narrow[name][r - self._starts[s]] for s, r in zip(shards, rows, strict=True)]

    def prefetch(self, shards: Iterable[int], teachers: Iterable[str], images: bool) -> None:
        """See `erw.data.stream.Dataset`: into the local cache, or from the disk into memory."""
        columns = ["latents", "labels", *(self.teachers[name].tokens for name in teachers), *[self._pixels] * images]
        groups = dict.fromkeys(self.column(name).group for name in columns)
        self.place.prefetch([(shard, group) for shard in shards for group in groups])

    def verify(self) -> None:
        """Read everything. Raises `Damaged` at the first row that is wrong."""
        for shard in range(len(self.manifest.shards)):
            for group in self.manifest.groups:
                self._file(shard, group).verify()

    def _file(self, shard: int, group: str) -> ShardFile:
        if self._process != os.getpid():  # descriptors of the parent serve as well, but are the parent's to close
            self._files, self._process = OrderedDict(), os.getpid()
        key = shard, group
        if key in self._files:
            self._files.move_to_end(key)
            return self._files[key]
        if self.place.evicts:
            # Of what made room for others, all that is not used still, or open it would stay on the disk.
            in_use = _WINDOWS_IN_USE * self.blocks.window * len({group for _, group in self._files})
            for other in [other for other in list(self._files)[:-in_use] if self._files[other].removed]:
                self._files.pop(other).close()
        while len(self._files) >= _OPEN_FILES:
            self._files.popitem(last=False)[1].close()
        self._files[key] = self.place.open(shard, group)
        return self._files[key]
