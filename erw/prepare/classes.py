"""From the names of files to classes: the first folder is the class."""

from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from erw.errors import UserError
from erw.prepare.listing import ONE_CLASS, SPLITS, SUFFIXES, Listing


class File(NamedTuple):
    """``name``: its path below the source, with slashes. ``place``: what the source needs to find it again."""

    name: str
    size: int
    place: Any = None


def by_class(source: Path, split: str | None, files: Iterable[File], folders: Iterable[str],
             refused: Iterable[tuple[str, str]] = ()) -> tuple[Listing, list[Any]]:  # fmt: skip
    """(`Listing`, place of each image) of ``files`` in any order.

    The first folder below ``split`` is the class; where there is no folder at all, everything is of one class.
    ``folders`` are all that exist, so that an empty one is noticed. ``refused``: (name, reason) to leave out.
    Raises `UserError` where there is no image, no such split, or a class without images.
    """
    prefix = f"{split.strip('/')}/" if split else ""
    images, others = _images(source, files, prefix)
    left_out = [*refused]
    names = sorted({_class_of(file, prefix) for file in images} - {""})
    if names:
        left_out += [(file.name, "lies in no class folder") for file in images if not _class_of(file, prefix)]
        images = [file for file in images if _class_of(file, prefix)]
        _check_none_empty(source, names, folders, prefix)
    images.sort(key=lambda file: (_class_of(file, prefix), file.name))
    number = {name: i for i, name in enumerate(names)} or {"": 0}
    listing = Listing(
        classes=names or [ONE_CLASS],
        names=[file.name for file in images],
        labels=np.array([number[_class_of(file, prefix)] for file in images], np.int64),
        sizes=np.array([file.size for file in images], np.int64),
        left_out=left_out,
        others=sorted(others),
    )
    return listing, [file.place for file in images]


def climbs_out(name: str) -> bool:
    """Whether an archive's entry is named outside of the folder that it would be unpacked in."""
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or any(part.endswith(":") for part in path.parts[:1])


def _images(source: Path, files: Iterable[File], prefix: str) -> tuple[list[File], list[str]]:
    """(images, names of other files) below ``prefix``."""
    images, others, tops = [], [], set()
    for file in files:
        if _junk(file.name):
            continue
        tops.add(file.name.partition("/")[0])
        if file.name.startswith(prefix):
            if PurePosixPath(file.name).suffix.lower() in SUFFIXES:
                images.append(file)
            else:
                others.append(file.name)
    if prefix and not images:
        have = ", ".join(sorted(tops)[:8]) or "nothing"
        raise UserError(f"--split {prefix[:-1]}: {source} has no images there; it holds {have}")
    if not images:
        raise UserError(f"{source} holds no images ({', '.join(sorted(SUFFIXES))}): name the folder that does")
    if not prefix and len(tops & SPLITS) > 1:
        splits = ", ".join(sorted(tops & SPLITS))
        raise UserError(f"{source} holds {splits}, which are splits, not classes: take one with --split")
    return images, others


def _class_of(file: File, prefix: str) -> str:
    """The first folder below ``prefix``, empty where there is none."""
    folder, slash, _ = file.name[len(prefix) :].partition("/")
    return folder if slash else ""


def _check_none_empty(source: Path, names: list[str], folders: Iterable[str], prefix: str) -> None:
    found = {f[len(prefix) :].partition("/")[0] for f in folders if f.startswith(prefix) and not _junk(f)}
    empty = sorted(found - {*names, ""})
    if empty:
        listed = ", ".join(empty[:5]) + " ..." * (len(empty) > 5)
        raise UserError(f"{source}: no image in class folder{'s' * (len(empty) > 1)} {listed}: fill, or remove")


def _junk(name: str) -> bool:
    """What file managers leave behind."""
    parts = PurePosixPath(name).parts
    return any(part.startswith(".") or part in ("__MACOSX", "Thumbs.db", "desktop.ini") for part in parts)
