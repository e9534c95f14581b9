"""The kernel's page cache of a folder's files: emptied, filled, asked. No root needed."""

import ctypes
import mmap
import os
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_LIBC.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
_PIECE = 8 << 20


def files_in(where: Path | list[Path]) -> list[Path]:
    """All regular files below a folder; a list of files is itself."""
    return where if isinstance(where, list) else sorted(file for file in where.rglob("*") if file.is_file())


def size_of(folder: Path) -> int:
    """Bytes of all files below."""
    return sum(file.stat().st_size for file in files_in(folder))


def empty(folder: Path) -> float:
    """Write out what is not written yet and drop every page. Returns the share that stayed in memory (mincore)."""
    for file in files_in(folder):
        opened = os.open(file, os.O_RDONLY)
        try:
            os.fsync(opened)
            os.posix_fadvise(opened, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(opened)
    return resident(folder)


def fill(folder: Path | list[Path]) -> float:
    """Read every file once. Returns the share that is in memory then (mincore)."""
    buffer = bytearray(_PIECE)
    for path in files_in(folder):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return resident(folder)


def resident(folder: Path | list[Path]) -> float:
    """Share of the files' pages that are in memory."""
    held = pages = 0
    for file in files_in(folder):
        size = file.stat().st_size
        if size:
            count = -(-size // mmap.PAGESIZE)
            held, pages = held + _held(file, size, count), pages + count
    return held / max(1, pages)


def _held(file: Path, size: int, count: int) -> int:
    opened = os.open(file, os.O_RDONLY)
    try:
        address = _LIBC.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, opened, 0)
    finally:
        os.close(opened)
    if address in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(file))
    try:
        flags = ctypes.create_string_buffer(count)
        if _LIBC.mincore(address, size, flags):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(file))
        return sum(byte & 1 for byte in flags.raw[:count])
    finally:
        _LIBC.munmap(address, size)
