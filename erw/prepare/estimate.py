"""``erw prepare --dry-run``: images, disk and hours, from a short timed sample. Writes nothing."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from erw.environment import device_name
from erw.errors import UserError
from erw.prepare.encode import Encoder
from erw.prepare.listing import Source
from erw.prepare.reading import Judged, Reader, batches
from erw.prepare.recipe import Recipe

_SAMPLE_BATCHES = 3  # the first one warms up and is not timed


def free_bytes(folder: Path) -> int:
    """Free on the disk that ``folder`` is, or would be, on."""
    while not folder.exists():
        folder = folder.absolute().parent
    return shutil.disk_usage(folder).free


def check_disk(out: Path, image_bytes: float, images: int) -> None:
    """Raise `UserError` where ``images`` more will not fit: now, not after hours."""
    need, free = image_bytes * images, free_bytes(out)
    if need > free:
        raise UserError(
            f"--out {out} needs {size_text(need)} more and has {size_text(free)} free: make room, or name another disk"
        )


def size_text(count: float) -> str:
    """1.5 GB and the like, in powers of ten, as disks are sold."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:.4g} TB"


def hours_text(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 6000 else f"{seconds / 3600:.1f} hours"


def estimate(source: Source, recipe: Recipe, out: Path, readers: int, devices: list[torch.device]) -> str:
    """What preparing ``source`` would take, as lines of text."""
    listing = source.listing
    count, sample = len(listing.names), min(len(listing.names), _SAMPLE_BATCHES * recipe.batch)
    judged, encoder = Judged(), Encoder(recipe, devices[0])
    stored, each, rate = _timed(encoder, batches(Reader(source, recipe, readers), _spread(count, sample), judged))
    if not each:
        name, reason = judged.left_out[0]
        raise UserError(f"no image of a sample of {sample} can be used; {name}: {reason}")
    shared = len(devices) if devices[0].type == "cuda" else 1  # processes on a CPU share what one has alone
    lines = [
        f"images  {count:,} in {len(listing.classes):,} classes, {size_text(float(listing.sizes.sum()))} of files",
        f"stored  {stored}: {size_text(each)} an image",
        f"disk    {size_text(each * count)}, of {size_text(free_bytes(out))} free",
        f"speed   {rate * shared:.3g} images/s, from {sample} images on {device_name(devices[0])}, {len(devices)} process"
        + "es" * (len(devices) > 1),
        f"time    {hours_text(count / (rate * shared))}",
    ]
    bad = [*listing.left_out, *judged.left_out]
    lines += [f"left out so far  {name}: {reason}" for name, reason in bad[:10]]
    return "\n".join(lines)


def _spread(count: int, sample: int) -> np.ndarray:
    return np.linspace(0, count - 1, sample).astype(np.int64)


def _timed(encoder: Encoder, parts: Iterator[tuple[list[int], torch.Tensor]]) -> tuple[str, float, float]:
    """(columns, bytes an image, images a second). The first batch loads and allocates: it counts only where it is alone."""
    stored, each, times, flips = "", 0.0, [], encoder.recipe.flips
    started = time.perf_counter()
    for kept, pixels in parts:
        columns = [encoder(pixels)] + [encoder(pixels.flip(-1)) for _ in range(flips)]
        each = sum(value.nbytes for value in columns[0].values()) * len(columns) / len(kept)
        stored = ", ".join(f"{name} {'x'.join(map(str, v.shape[1:]))} {_dtype(v)}" for name, v in columns[0].items())
        times.append((len(kept), time.perf_counter() - started))
        started = time.perf_counter()
    times = times[1:] or times
    return stored, each, sum(n for n, _ in times) / max(sum(seconds for _, seconds in times), 1e-9)


def _dtype(values: torch.Tensor) -> str:
    return str(values.dtype).removeprefix("torch.")
