"""A zip or a tar of a folder by class, read in place: nothing is unpacked, so no entry can climb out of anywhere."""

import bz2
import gzip
import lzma
import os
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from erw.errors import UserError
from erw.prepare.classes import File, by_class, climbs_out

_CLIMBS = "the entry climbs out of the archive"
_OPENERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
_DAMAGED = (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError)


class _Handle:
    """A file opened where it is used, not where it was listed, and used by one thread at a time."""

    def __init__(self, make):
        self._make = make
        self._lock, self._file = threading.Lock(), None

    def __getstate__(self):
        return self._make

    def __setstate__(self, make):
        self.__init__(make)

    def __enter__(self):
        self._lock.acquire()
        if self._file is None:
            self._file = self._make()
        return self._file

    def __exit__(self, *_):
        self._lock.release()


class ZipSource:
    """Entries of a zip."""

    def __init__(self, path: Path, split: str | None):
        self._handle = _Handle(_Open(zipfile.ZipFile, path))
        try:
            with self._handle as archive:
                entries = archive.infolist()
        except _DAMAGED as error:
            raise UserError(f"{path} is not a whole zip ({error}): download or write it again") from None
        refused = [(e.filename, _CLIMBS) for e in entries if climbs_out(e.filename)]
        refused += [(e.filename, "encrypted") for e in entries if e.flag_bits & 1 and not climbs_out(e.filename)]
        names = {name for name, _ in refused}
        good = [e for e in entries if e.filename not in names]
        folders = [e.filename.rstrip("/") for e in good if e.is_dir()]
        files = (File(e.filename, e.file_size) for e in good if not e.is_dir())
        self.listing, _ = by_class(path, split, files, folders, refused)

    def read(self, number: int) -> bytes:
        """See `erw.prepare.sources.Source`."""
        try:
            with self._handle as archive:
                return archive.read(self.listing.names[number])
        except _DAMAGED as error:
            raise OSError(f"damaged in the archive: {error}") from None


class TarSource:
    """Members of a tar. Of a tar of tars, as ImageNet's training set comes, each inner one is a class.

    A compressed tar has no way to a member but through all before it. `plain` gives one that does.
    """

    def __init__(self, path: Path, split: str | None):
        self.path, self.split = path, split
        self.compressed = _opener(path) is not open
        self._handle = _Handle(_Open(_opener(path), path))
        folders: list[str] = []
        refused: list[tuple[str, str]] = []
        try:
            with self._handle as file:
                files = list(_members(tarfile.TarFile(fileobj=file), folders, refused))
        except _DAMAGED as error:
            raise UserError(f"{path} is not a whole tar ({error}): download or write it again") from None
        self.listing, self._places = by_class(path, split, files, folders, refused)

    def read(self, number: int) -> bytes:
        """See `erw.prepare.sources.Source`."""
        try:
            with self._handle as file:
                file.seek(self._places[number])
                return file.read(int(self.listing.sizes[number]))
        except _DAMAGED as error:
            raise OSError(f"damaged in the archive: {error}") from None

    def plain(self, write: IO[bytes]) -> None:
        """Unpack the compression, not the tar, into ``write``."""
        with _opener(self.path)(self.path, "rb") as file:
            while part := file.read(1 << 22):
                write.write(part)

    def moved(self, path: Path) -> "TarSource":
        """This source read from ``path``, what `plain` wrote."""
        self._handle = _Handle(_Open(open, path))
        return self


class _Open:
    """``opener(path, "rb")``, or of a zip ``opener(path)``, when it is called; can be pickled."""

    def __init__(self, opener, path: Path):
        self.opener, self.path = opener, path

    def __call__(self):
        return self.opener(self.path, *([] if self.opener is zipfile.ZipFile else ["rb"]))


def _members(archive: tarfile.TarFile, folders: list[str], refused: list[tuple[str, str]], start: int = 0,
             within: str = "") -> Iterator[File]:  # fmt: skip
    """Each file, its place being the offset of its bytes; folders and refused entries are added to the lists."""
    for member in archive:
        name = within + os.path.normpath(member.name).replace(os.sep, "/")
        if climbs_out(member.name):
            refused.append((member.name, _CLIMBS))
        elif member.isdir():
            folders += [name] * (name != ".")
        elif member.isfile() and not member.issparse():
            if name.endswith(".tar"):
                folder = PurePosixPath(name).with_suffix("").as_posix()
                folders.append(folder)
                inner = tarfile.TarFile(fileobj=archive.extractfile(member))
                yield from _members(inner, folders, refused, start + member.offset_data, f"{folder}/")
            else:
                yield File(name, member.size, start + member.offset_data)
        else:
            refused.append((name, "a link or device in the archive, not a file"))


def _opener(path: Path):
    with path.open("rb") as file:
        head = file.read(6)
    return next((opener for magic, opener in _OPENERS.items() if head.startswith(magic)), open)


def is_zip(path: Path) -> bool:
    """By its content, whatever its name."""
    return zipfile.is_zipfile(path) or path.suffix.lower() == ".zip"


def is_tar(path: Path) -> bool:
    """By its content, whatever its name; a damaged one by its name."""
    named = any(suffix.lower() in (".tar", ".tgz", ".txz", ".tbz2") for suffix in path.suffixes)
    return named or tarfile.is_tarfile(path)
