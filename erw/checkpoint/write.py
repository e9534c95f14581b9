"""Writing a checkpoint: into a folder with another name, synced, renamed."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from erw.checkpoint.layout import FORMAT, KEYS, Meta, fault, folder_name, found, sha256
from erw.optim import WEIGHTS

_PARTIAL, _OLD, _CORRUPT = ".partial-", ".old-", ".corrupt-"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save(folder: Path, meta: Meta, read: Callable[[str], dict[str, Tensor]], buffers: dict[str, Tensor], *, keep: int,
         writes: bool, keys: tuple[str, ...] = KEYS) -> Path:  # fmt: skip
    """Write a checkpoint below ``folder`` and delete all but the newest ``keep``.

    ``read(key)`` is a collective that gives full tensors, for each of ``keys`` (without the moments, a checkpoint cannot be
    resumed); every rank calls `save`, the one with ``writes`` writes. It calls ``read`` for every key even where writing
    fails. ``buffers`` (position tables) join the weights and the EMA. One kind of tensor is in memory at a time.
    Raises OSError where the disk does not take it; then nothing of it is left, and what was there before is.
    """
    final, partial = folder / folder_name(meta.images), folder / f"{_PARTIAL}{folder_name(meta.images)}"
    files: dict[str, dict] = {}
    failure: OSError | None = None
    for key in keys:
        tensors = read(key)
        if not writes or failure:
            continue
        try:
            if not files:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            _write_tensors(partial / f"{key}.safetensors", tensors | buffers if key in (WEIGHTS, "ema") else tensors, files)
        except OSError as error:
            failure = error
    if not writes:
        return final
    try:
        if failure:
            raise failure
        text = json.dumps({"format": FORMAT, **meta.__dict__, "files": files}, indent=1)
        (partial / "meta.json").write_text(text, encoding="utf-8")
        _publish(partial, final)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)  # the room that it took is needed for other things
        raise
    for old in found(folder)[:-keep]:
        _remove(old)
    return final


def _write_tensors(file: Path, tensors: dict[str, Tensor], files: dict[str, dict]) -> None:
    try:
        save_file({name: t.contiguous() for name, t in tensors.items()}, file)
    except SafetensorError as error:
        raise OSError(str(error).removeprefix("Error while serializing: ")) from None
    _sync(file)
    files[file.name] = {"bytes": file.stat().st_size, "sha256": sha256(file)}


def _publish(partial: Path, final: Path) -> None:
    """Sync ``partial`` and give it its name. The same state may be there under that name, as good, or damaged since."""
    _sync(partial / "meta.json")
    _sync(partial)
    if final.exists() and not fault(final):
        shutil.rmtree(partial)
        return
    if final.exists():
        set_aside(final)
    os.rename(partial, final)
    _sync(final.parent)


def _remove(checkpoint: Path) -> None:
    """Renamed first: a kill halfway through the deletion must not leave half a checkpoint under a good name."""
    doomed = checkpoint.with_name(f"{_OLD}{checkpoint.name}")
    with contextlib.suppress(OSError):  # what is left is swept at the next start
        os.rename(checkpoint, doomed)
        shutil.rmtree(doomed)


def set_aside(checkpoint: Path) -> Path:
    """Rename a damaged checkpoint so that nothing takes it for a good one. Returns the new place."""
    place = checkpoint.with_name(f"{_CORRUPT}{checkpoint.name}")
    count = 1
    while place.exists():
        count += 1
        place = checkpoint.with_name(f"{_CORRUPT}{checkpoint.name}-{count}")
    os.rename(checkpoint, place)
    return place


def sweep(folder: Path) -> None:
    """Remove what killed processes left half written or half deleted below ``folder``."""
    for left in [*folder.glob(f"{_PARTIAL}*"), *folder.glob(f"{_OLD}*")]:
        shutil.rmtree(left, ignore_errors=True)
