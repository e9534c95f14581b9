"""What each rank itself needs for a step before it meets the others: from waiting for data to the end of the forward.

In collectives all ranks take as long as the slowest, so that whole steps show no straggler. On a CPU the parts that a rank
computes alone are timed by the clock. On a GPU the wait for data is, and the rest by CUDA events in the first step after each
report, read at the next one. (Under ZeRO-3 the forward has collectives too, and shows less.)
"""

import time
from contextlib import AbstractContextManager

import torch

_ALONE = ("data wait", "copy", "draw", "teacher", "forward")


class Pace:
    """Times one rank's own parts of its steps."""

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._host, self._steps = 0.0, 0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._device = 0.0

    def part(self, name: str, inner: AbstractContextManager) -> AbstractContextManager:
        """``inner``, timed where ``name`` is a part that a rank does alone."""
        if name not in _ALONE:
            return inner
        if not self._cuda or name == "data wait":
            return _HostPart(self, inner)
        return _DevicePart(self, inner) if self._steps == 0 else inner

    def step(self) -> None:
        """A step has ended."""
        self._steps += 1

    def seconds(self) -> float:
        """Of a step, since the last call; the host does not wait."""
        if self._events and self._events[-1][1].query():
            self._device = sum(start.elapsed_time(end) for start, end in self._events) / 1000
        seconds = self._host / max(self._steps, 1) + self._device
        self._host, self._steps, self._events = 0.0, 0, []
        return seconds


class _HostPart:
    def __init__(self, pace: Pace, inner: AbstractContextManager):
        self.pace, self.inner = pace, inner

    def __enter__(self) -> None:
        self.start = time.perf_counter()
        self.inner.__enter__()

    def __exit__(self, *error) -> None:
        self.inner.__exit__(*error)
        self.pace._host += time.perf_counter() - self.start


class _DevicePart:
    def __init__(self, pace: Pace, inner: AbstractContextManager):
        self.pace, self.inner = pace, inner

    def __enter__(self) -> None:
        self.events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self.events[0].record()
        self.inner.__enter__()

    def __exit__(self, *error) -> None:
        self.inner.__exit__(*error)
        self.events[1].record()
        self.pace._events.append(self.events)


class Stragglers:
    """Says who is slow: a rank that for three reports in a row took ``factor`` times as long as the median rank (0: never)."""

    def __init__(self, factor: float, hosts: list[str]):
        self.factor, self.hosts = factor, hosts
        self._row, self._last = 0, -1

    def line(self, slowest: int, longest: float, median: float) -> str:
        """One line at the third report of such a row, else nothing."""
        slow = self.factor > 0 and longest > self.factor * median
        self._row = (self._row + 1 if slowest == self._last else 1) if slow else 0
        self._last = slowest if slow else -1
        if self._row != 3:
            return ""
        return (
            f"straggler: rank {slowest} ({self.hosts[slowest]}) takes {longest:.3g} s a step before it meets the others, the"
            f" median rank {median:.3g} s"
        )
