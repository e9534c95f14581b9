"""Where this rank's steps spend their time: waiting for data, teacher, forward, backward, optimizer.

On a CPU every part is timed by the clock. On a GPU it is timed by CUDA events in the first step after each report and read at
the next one, so that the host never waits; a part's time is then what the device needed for it, or stood idle in it. The
host's own wait for data is timed in every step.
"""

import time
from collections import defaultdict
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

WAIT = "data wait"


@dataclass(frozen=True)
class PartTimes:
    """Seconds of ``steps`` steps by part, and how long the host ``waited`` for data in them."""

    steps: int
    seconds: dict[str, float]
    waited: float

    def mean(self, names: tuple[str, ...]) -> float:
        """Seconds of a step that the parts in ``names`` took."""
        return sum(self.seconds.get(name, 0.0) for name in names) / max(self.steps, 1)


class Parts:
    """Times the parts of one rank's steps."""

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._steps = 0
        self._clock: defaultdict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._of_a_step: dict[str, float] = {}

    def part(self, name: str, inner: AbstractContextManager) -> AbstractContextManager:
        """``inner``, timed as ``name``."""
        if not self._cuda:
            return _Clocked(self, name, inner)
        timed = _Evented(self, name, inner) if self._steps == 0 else inner
        return _Clocked(self, name, timed) if name == WAIT else timed

    def step(self) -> None:
        """A step has ended."""
        self._steps += 1

    def read(self) -> PartTimes:
        """Of the steps since the last call; the host does not wait."""
        times = PartTimes(self._steps, self._seconds(), self._clock[WAIT])
        self._steps, self._events = 0, []
        self._clock.clear()
        return times

    def _seconds(self) -> dict[str, float]:
        if not self._cuda:
            return dict(self._clock)
        if self._events and self._events[-1][2].query():
            self._of_a_step = defaultdict(float)
            for name, start, end in self._events:
                self._of_a_step[name] += start.elapsed_time(end) / 1000
        return {name: seconds * self._steps for name, seconds in self._of_a_step.items()}


class _Clocked:
    def __init__(self, parts: Parts, name: str, inner: AbstractContextManager):
        self.parts, self.name, self.inner = parts, name, inner

    def __enter__(self) -> None:
        self.start = time.perf_counter()
        self.inner.__enter__()

    def __exit__(self, *error) -> None:
        self.inner.__exit__(*error)
        self.parts._clock[self.name] += time.perf_counter() - self.start


class _Evented:
    def __init__(self, parts: Parts, name: str, inner: AbstractContextManager):
        self.parts, self.name, self.inner = parts, name, inner

    def __enter__(self) -> None:
        self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.start.record()
        self.inner.__enter__()

    def __exit__(self, *error) -> None:
        self.inner.__exit__(*error)
        self.end.record()
        self.parts._events.append((self.name, self.start, self.end))
