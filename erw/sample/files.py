"""Files of a sampling job, which goes on where it ended, and the lock of its folder."""

import fcntl
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from erw.errors import RankError, UserError
from erw.files import whole


@contextmanager
def kept(path: Path) -> Iterator[IO[bytes]]:
    """`erw.files.whole`. Raises `RankError` where the disk refuses."""
    try:
        with whole(path) as file:
            yield file
    except OSError as error:
        reason = error.strerror or error
        raise RankError(f"{path} cannot be written: {reason}; finished images are kept, the same command goes on") from None


def write_npz(path: Path, parts: Iterable[np.ndarray], shape: tuple[int, ...], labels: np.ndarray) -> None:
    """An .npz of ``arr_0`` uint8 of ``shape`` (N, H, W, C), from ``parts`` of its rows in order, and ``labels`` (N,).

    One part is in memory at a time. The same input gives the same bytes. This is what ADM's evaluator reads.
    """
    with kept(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for part in parts:
                member.write(np.ascontiguousarray(part).data)
        with archive.open(zipfile.ZipInfo("labels.npy"), "w", force_zip64=True) as member:
            np.lib.format.write_array(member, labels)


def lock(folder: Path) -> IO[bytes]:
    """Make ``folder`` and hold it until the returned file is closed or the process ends. Raises `UserError` if it is held."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("wb")
    except OSError as error:
        raise UserError(f"--out {folder} cannot be written: {error.strerror or error}") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise UserError(f"another erw sample is at work in {folder}: wait for it, stop it, or name another --out") from None
    return file
