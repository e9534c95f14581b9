"""The largest batch of a row that fits into a GPU's memory, and what an image costs there."""

import gc
from collections.abc import Callable
from dataclasses import replace

import torch

from erw.bench._build import build, settled
from erw.bench._ladder import Row
from erw.bench._measure import OUT_OF_MEMORY, Settings, attempt
from erw.bench._scene import Scene
from erw.bench._timing import Deadline

# Bisection ends where the batch is known to one part in this many.
_GRAIN = 16


def search(peak_of: Callable[[int], int | str], start: int, deadline: Deadline) -> dict:
    """The largest batch for which ``peak_of(batch)`` gives bytes instead of a status.

    Doubles ``start`` until one does not fit (halves it until one does), then bisects. ``finished`` is False where the time
    or another failure ended it early; ``bytes_per_image`` is the slope between the smallest and the largest that fit.
    """
    tried: dict[int, int | str] = {}

    def fits(batch: int) -> bool:
        tried[batch] = peak_of(batch)
        return not isinstance(tried[batch], str)

    def going_on() -> bool:
        return deadline.left() > 0 and all(found == OUT_OF_MEMORY for found in tried.values() if isinstance(found, str))

    low, high, batch = 0, None, start
    while going_on() and batch >= 1 and not (high is not None and low and high - low <= max(1, low // _GRAIN)):
        if fits(batch):
            low = batch
        else:
            high = batch
        batch = 2 * low if high is None else (low + high) // 2 if low else high // 2
    sizes = sorted(size for size, found in tried.items() if not isinstance(found, str))
    slope = (tried[sizes[-1]] - tried[sizes[0]]) / (sizes[-1] - sizes[0]) if len(sizes) > 1 else None
    return {"batch": low or None, "bytes_per_image": slope, "tried": {str(size): tried[size] for size in sorted(tried)},
            "finished": going_on()}  # fmt: skip


def largest(row: Row, scene: Scene, settings: Settings) -> dict:
    """`search` with real steps of ``row``, starting at the batch of ``scene``."""

    device = settings.device

    def peak_of(batch: int) -> int | str:
        def steps() -> int:
            at = replace(scene, batch=batch)
            inputs = at.inputs(device)
            step = build(settled(row.setup, at, device), at, device, settings.published)
            for _ in range(2):  # the second has the optimizer's state too
                torch.cuda.reset_peak_memory_stats(device)
                step(*inputs)
            return torch.cuda.max_memory_allocated(device)

        found = attempt(steps)
        gc.collect()
        torch.cuda.empty_cache()
        torch.compiler.reset()
        return found

    return search(peak_of, scene.batch, settings.deadline)
