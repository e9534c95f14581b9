"""The run's folder and the caches: writable, free, fast, and on which file system."""

import os
import shutil
import tempfile
import time
from pathlib import Path

from erw.cache import cache_folder
from erw.doctor.checks import Finding

_BLOCK, _BLOCKS = 2**22, 32  # 128 MiB
_SLOW, _LEAST = 0.1e9, 20 * 2**30  # bytes a second; bytes free
_SHARED = ("nfs", "nfs4", "cifs", "smb3", "lustre", "gpfs", "beegfs", "ceph", "fuse", "9p", "wekafs", "panfs", "afs")


def run_folder(folder: Path) -> list[Finding]:
    """Free space, and speed of what a checkpoint does there: write, sync, rename, read."""
    there = _existing(folder)
    usage, kind = shutil.disk_usage(there), file_system(there)
    text = f"{folder}: {usage.free / 2**30:.0f} of {usage.total / 2**30:.0f} GiB free ({kind})"
    tight = usage.free < _LEAST
    mend = "a checkpoint has 16 bytes a parameter (XL: 11 GB), three are kept: erw plan says how much"
    space = Finding("warn" if tight else "ok", "space", text, mend if tight else "")
    try:
        write, read, small = _speed(there)
    except OSError as error:
        mend = "name another folder with --out"
        return [space, Finding("bad", "storage", f"{there} cannot be written ({error.strerror})", mend)]
    text = f"writes {write / 1e9:.2f} GB/s synced, reads {read / 1e9:.2f} GB/s, a small file renamed in {small * 1e3:.1f} ms"
    slow = write < _SLOW
    return [space, Finding("warn" if slow else "ok", "storage", text, "checkpoints will take long" if slow else "")]


def caches() -> list[Finding]:
    """Caches of compiled kernels and small networks belong on a disk of the machine's own."""
    named = {
        "ERW_CACHE": cache_folder(),
        "TRITON_CACHE_DIR": Path(os.environ.get("TRITON_CACHE_DIR") or "~/.triton/cache").expanduser(),
        "TORCHINDUCTOR_CACHE_DIR": Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or tempfile.gettempdir()),
    }
    found = []
    for variable, folder in named.items():
        there = _existing(folder)
        if not os.access(there, os.W_OK):
            mend = f"set {variable} to a folder that can be written"
            found.append(Finding("bad", "cache", f"{folder} cannot be written", mend))
        elif file_system(there).startswith(_SHARED):
            mend = f"set {variable} to a disk of the machine's own"
            found.append(Finding("warn", "cache", f"{folder} is on {file_system(there)}", mend))
    return found or [Finding("ok", "cache", ", ".join(str(folder) for folder in named.values()))]


def file_system(path: Path, mounts: Path = Path("/proc/mounts")) -> str:
    """The kind of file system that ``path`` is on, by the longest mount point above it; unknown where there is no list."""
    best = ("", "unknown")
    here = path.resolve()
    for row in mounts.read_text(encoding="utf-8", errors="replace").splitlines() if mounts.exists() else ():
        _, point, kind, *_ = row.split(" ")
        point = point.replace("\\040", " ")
        if here.is_relative_to(point) and len(point) >= len(best[0]):
            best = point, kind
    return best[1]


def _existing(folder: Path) -> Path:
    """``folder``, or the nearest above it that exists."""
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if place.exists())


def _speed(folder: Path) -> tuple[float, float, float]:
    """Bytes a second written and read, seconds of a small file's way."""
    block = os.urandom(_BLOCK)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".erw-doctor-") as place:
        file, begun = Path(place, "block"), time.perf_counter()
        with file.open("wb") as stream:
            for _ in range(_BLOCKS):
                stream.write(block)
            stream.flush()
            os.fsync(stream.fileno())
            written = time.perf_counter()
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        again = time.perf_counter()
        with file.open("rb", buffering=0) as stream:
            while stream.read(_BLOCK):
                pass
        read = time.perf_counter()
        for number in range(5):
            note = Path(place, f"{number}.partial")
            with note.open("wb") as stream:
                stream.write(b"erw")
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(note, Path(place, str(number)))
        small = (time.perf_counter() - read) / 5
    total = _BLOCK * _BLOCKS
    return total / (written - begun), total / (read - again), small
