"""Where images come from: a folder by class, a zip or tar of one, parquet or Arrow tables. A new kind is a new file here.

A source is listed once, in an order that depends on names alone, and then read by number, by any process: it can be
pickled, and opens its files where it is used. Nothing is ever unpacked under a name that an archive gives.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np

from erw.errors import UserError

# What is taken for an image by its name; anything else is listed as another file and judged no further.
SUFFIXES = frozenset(
    [".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pnm", ".jp2", ".avif", ".tga", ".pcx"]
)  # fmt: skip
SPLITS = {"train", "training", "val", "valid", "validation", "test"}
ONE_CLASS = "images"  # the class of images that lie in no class folder because there is none


@dataclass(kw_only=True)
class Listing:
    """What a source holds. N images in the order of their names.

    names, labels  (N,) of each image; labels index ``classes``
    sizes          (N,) bytes of each file, 0 where a table does not say
    blocks         lengths of runs of images that are read together (a table's row groups); empty: each for itself
    left_out       (name, reason) of images that cannot be used, seen from here
    others         names of files that are no images
    """

    classes: list[str]
    names: list[str]
    labels: np.ndarray
    sizes: np.ndarray
    blocks: list[int] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    @property
    def digest(self) -> str:
        """SHA-256 of names, labels and sizes: whether a restart finds what it left."""
        found = hashlib.sha256("\n".join([*self.classes, "", *self.names]).encode("utf-8", "surrogateescape"))
        for array in (self.labels, self.sizes):
            found.update(array.astype("<i8").tobytes())
        return found.hexdigest()


class Source(Protocol):
    """``read(number)`` gives the bytes of an image's file. Raises OSError where it cannot be read."""

    listing: Listing

    def read(self, number: int) -> bytes: ...


def open_source(path: Path, split: str | None = None) -> Source:
    """The source in ``path``; ``split``: the sub-folder, or the tables, to take. Raises `UserError` for what is none."""
    from erw.prepare.archives import TarSource, ZipSource, is_tar, is_zip
    from erw.prepare.folder import FolderSource
    from erw.prepare.tables import TableSource, tables_in

    if not path.exists():
        raise UserError(f"'{path}' does not exist: name a folder by class, a zip or tar of one, or a parquet data set")
    found = tables_in(path)
    if found:
        return TableSource(path, found, split)
    if path.is_dir():
        return FolderSource(path, split)
    for suits, kind in ((is_zip, ZipSource), (is_tar, TarSource)):
        if suits(path):
            return kind(path, split)
    raise UserError(f"{path} is neither a folder, a zip, a tar (plain, gz, bz2, xz) nor parquet: name one of these")


def by_class(source: Path, split: str | None, files: Iterable[tuple[str, int, object]], folders: Iterable[str],
             refused: Iterable[tuple[str, str]] = ()) -> tuple[Listing, list[object]]:  # fmt: skip
    """(`Listing`, place of each image) of ``files``: (path with slashes, bytes, place), in any order.

    The first folder below ``split`` is the class; where there is no folder at all, everything is of one class.
    ``folders`` are all that exist, so that an empty one is noticed. ``refused``: (name, reason) to leave out.
    Raises `UserError` where there is no image, no such split, or a class without images.
    """
    prefix = f"{split.strip('/')}/" if split else ""
    rows, others, classes = [], [], set()
    every = set()
    for name, size, place in files:
        every.add(name.partition("/")[0])
        if not name.startswith(prefix) or _junk(name):
            continue
        inner = name[len(prefix) :]
        if PurePosixPath(name).suffix.lower() not in SUFFIXES:
            others.append(name)
            continue
        folder, slash, _ = inner.partition("/")
        rows.append((folder if slash else "", name, size, place))
        classes.add(folder if slash else "")
    if split and not rows:
        raise UserError(f"--split {split}: {source} has no images there; it has {', '.join(sorted(every)[:8]) or 'nothing'}")
    if not rows:
        raise UserError(f"{source} holds no images ({', '.join(sorted(SUFFIXES))}): name the folder that does")
    if not split and len(every & SPLITS) > 1:
        raise UserError(
            f"{source} holds {', '.join(sorted(every & SPLITS))}, which are splits, not classes: take one with --split"
        )
    left_out = [*refused]
    if classes - {""}:
        left_out += [(name, "lies in no class folder") for folder, name, *_ in rows if not folder]
        rows = [row for row in rows if row[0]]
    inner = {f[len(prefix) :].partition("/")[0] for f in folders if f.startswith(prefix) and not _junk(f)}
    empty = sorted(inner - classes - {""})
    if empty and classes - {""}:
        raise UserError(
            f"{source}: class folder{'s' * (len(empty) > 1)} {', '.join(empty[:5])}{' ...' * (len(empty) > 5)} without an"
            " image: remove, or fill"
        )
    rows.sort(key=lambda row: (row[0], row[1]))
    names = sorted(classes - {""}) or [ONE_CLASS]
    number = {name: i for i, name in enumerate(names)} | ({"": 0} if names == [ONE_CLASS] else {})
    listing = Listing(
        classes=names,
        names=[name for _, name, *_ in rows],
        labels=np.array([number[folder] for folder, *_ in rows], np.int64),
        sizes=np.array([size for *_, size, _ in rows], np.int64),
        left_out=left_out,
        others=sorted(others),
    )
    return listing, [row[-1] for row in rows]


def climbs_out(name: str) -> bool:
    """Whether an archive's entry is named outside of the folder that it would be unpacked in."""
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or ":" in path.parts[:1]


def _junk(name: str) -> bool:
    """What file managers leave behind."""
    parts = PurePosixPath(name).parts
    return any(p.startswith(".") or p in ("__MACOSX", "Thumbs.db", "desktop.ini") for p in parts)
