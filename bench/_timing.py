"""Timing of several callables in turn, so that clocks, heat and neighbours touch all of them alike."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from erw.clock import Stopwatch

# Fewer rounds than this give no quantiles worth the name; a deadline does not cut below it.
LEAST_ROUNDS = 2


@dataclass(frozen=True)
class Timing:
    """Seconds of one call, one value a round, in order."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    @property
    def p20(self) -> float:
        """Seconds that a fifth of the rounds stayed under."""
        return quantile(self.seconds, 0.2)

    @property
    def p80(self) -> float:
        """Seconds that four fifths of the rounds stayed under."""
        return quantile(self.seconds, 0.8)


def quantile(values: tuple[float, ...], q: float) -> float:
    """Quantile ``q`` in 0..1 with linear interpolation between order statistics."""
    ordered = sorted(values)
    position = q * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


class Deadline:
    """A time to stop at. ``seconds`` None: never."""

    def __init__(self, seconds: float | None = None):
        self._end = None if seconds is None else time.monotonic() + seconds

    def left(self) -> float:
        """Seconds left; negative when it is over, infinite without one."""
        return float("inf") if self._end is None else self._end - time.monotonic()


class L2Flush:
    """Overwrites a buffer twice the size of the L2 cache: a kernel then finds its inputs in memory. Idle on a CPU."""

    def __init__(self, device: torch.device):
        size = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
        self._buffer = torch.empty(2 * size, dtype=torch.int8, device=device) if size else None

    def __call__(self) -> None:
        if self._buffer is not None:
            self._buffer.zero_()


def interleave(
    functions: dict[str, Callable[[], object]],
    *,
    device: torch.device,
    rounds: int,
    warmup: int = 2,
    calls: dict[str, int] | None = None,
    flush: bool = False,
    deadline: Deadline | None = None,
) -> dict[str, Timing]:
    """Measure each of ``functions`` once a round, for ``rounds`` rounds; who goes first changes from round to round.

    calls     calls in one measurement, by name (default 1), for functions much shorter than the clock's grain
    flush     empty the L2 cache before each measurement; needs one call a measurement
    deadline  no new round is begun after it, but at least `LEAST_ROUNDS` are run
    """
    calls = calls or {}
    if flush and any(count != 1 for count in calls.values()):
        raise ValueError("flush=True empties the cache once a measurement: it needs calls=1")
    stopwatch, empty = Stopwatch(device), L2Flush(device) if flush else None
    for _ in range(warmup):
        for function in functions.values():
            function()
    names = list(functions)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        if deadline is not None and number >= LEAST_ROUNDS and deadline.left() <= 0:
            break
        first = number % len(names)
        for name in names[first:] + names[:first]:
            if empty is not None:
                empty()
            seconds[name].append(stopwatch(functions[name], calls.get(name, 1)))
    return {name: Timing(tuple(values)) for name, values in seconds.items()}
