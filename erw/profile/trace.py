"""Figures from a trace of some steps: time by part of the loop, by kind of work and by operation.

On a GPU work is what ran on the device: a kernel belongs to the part in which the host launched it. On a CPU it is the
operators of the thread that trains, each without those that it called.
"""

import gzip
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erw.profile.kinds import KINDS, kind_of

PREFIX = "erw::"
PARTS = ("data wait", "copy", "draw", "teacher", "forward", "backward", "optimizer", "report")
"""Parts of a step in the loop's order."""
_ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
_LAUNCHES = ("cuda_runtime", "cuda_driver")
Event = dict[str, Any]
Span = tuple[float, float]


@dataclass(frozen=True)
class Breakdown:
    """Milliseconds a step.

    step     from one step's begin to the next's
    parts    name to (host, device) in the loop's order, and ``other``; device None on a CPU
    kinds    kind to time; what is left of ``step`` is idle
    hidden   communication behind other work
    top      (operation, kind, time, calls a step), longest first
    """

    steps: int
    step: float
    parts: dict[str, tuple[float, float | None]]
    kinds: dict[str, float]
    hidden: float
    top: list[tuple[str, str, float, float]]

    @property
    def idle(self) -> float:
        """Time of a step in which nothing of any kind ran."""
        return max(0.0, self.step - sum(self.kinds.values()))


def read_events(trace: Path) -> list[Event]:
    """The complete events of a gzipped Chrome trace."""
    with gzip.open(trace, "rt", encoding="utf-8") as file:
        return [event for event in json.load(file)["traceEvents"] if event.get("ph") == "X"]


def breakdown(events: list[Event], steps: int) -> Breakdown:
    """The figures of ``steps`` steps from the events of a trace, whose times are in microseconds.

    Raises ValueError for a trace without parts of a step.
    """
    ranges = [e for e in events if e.get("cat") == "user_annotation" and e["name"].startswith(PREFIX)]
    if not ranges:
        raise ValueError("the trace holds no parts of a step")
    ranges.sort(key=lambda e: e["ts"])
    window = ranges[0]["ts"], max(e["ts"] + e["dur"] for e in ranges)
    device = [e for e in events if e.get("cat") in _ON_DEVICE and e["ts"] >= window[0]]
    if device:
        window = window[0], max(window[1], *(e["ts"] + e["dur"] for e in device))
        work = [(e["name"], kind_of(e["name"]), float(e["dur"]), _span(e)) for e in device]
        kinds, hidden = _by_priority([(kind, span) for _, kind, _, span in work])
        by_part = _launched_in(device, events, ranges)
    else:
        work = _self_times(events, ranges[0]["tid"], window)
        kinds, hidden, by_part = Counter(), 0.0, None
        for _, kind, took, _ in work:
            kinds[kind] += took
    scale = 1e-3 / max(1, steps)
    host = Counter()
    for e in ranges:
        host[e["name"].removeprefix(PREFIX)] += e["dur"]
    host["other"] = window[1] - window[0] - sum(host.values())
    names = [name for name in (*PARTS, "other") if name in host]
    parts = {name: (host[name] * scale, by_part[name] * scale if by_part is not None else None) for name in names}
    return Breakdown(steps, (window[1] - window[0]) * scale, parts, {k: kinds[k] * scale for k in KINDS}, hidden * scale,
                     _longest(work, scale, max(1, steps)))  # fmt: skip


def _span(event: Event) -> Span:
    return event["ts"], event["ts"] + event["dur"]


def _launched_in(device: list[Event], events: list[Event], ranges: list[Event]) -> Counter:
    """Device time by the part in which the host launched it. Autograd launches from its own thread, so time decides."""
    launched = {e["args"]["correlation"]: e["ts"] for e in events
                if e.get("cat") in _LAUNCHES and "correlation" in e.get("args", {})}  # fmt: skip
    spans, found, place = [(*_span(e), e["name"].removeprefix(PREFIX)) for e in ranges], Counter(), 0
    at = sorted((launched.get(e.get("args", {}).get("correlation"), -1.0), e["dur"]) for e in device)
    for start, took in at:
        while place + 1 < len(spans) and spans[place + 1][0] <= start:
            place += 1
        inside = spans[place][0] <= start < spans[place][1]
        found[spans[place][2] if inside else "other"] += took
    return found


def _by_priority(work: Iterable[tuple[str, Span]]) -> tuple[Counter, float]:
    """(time of each kind, time in which communication ran beside another kind), each instant counted once."""
    changes = sorted((time, change, kind) for kind, span in work for time, change in zip(span, (1, -1), strict=True))
    running, times, hidden, last = Counter(), Counter(), 0.0, 0.0
    for time, change, kind in changes:
        first = next((k for k in KINDS if running[k]), None)
        if first is not None:
            times[first] += time - last
            hidden += (time - last) * (first != "communication" and running["communication"] > 0)
        running[kind] += change
        last = time
    return times, hidden


def _self_times(events: list[Event], thread: int, window: Span) -> list[tuple[str, str, float, Span]]:
    """(operator, kind, time without the operators that it called, span) of one thread; a GEMM's helpers are GEMM."""
    operators = [e for e in events if e.get("cat") == "cpu_op" and e["tid"] == thread
                 and window[0] <= e["ts"] and e["ts"] + e["dur"] <= window[1]]  # fmt: skip
    operators.sort(key=lambda e: (e["ts"], -e["dur"]))
    found: list[list] = []
    calling: list[int] = []
    for e in operators:
        span = _span(e)
        while calling and found[calling[-1]][3][1] <= span[0]:
            calling.pop()
        kind = kind_of(e["name"])
        if calling:
            caller = found[calling[-1]]
            caller[2] -= e["dur"]
            kind = caller[1] if caller[1] != "memory-bound" else kind
        calling.append(len(found))
        found.append([e["name"], kind, float(e["dur"]), span])
    return [tuple(entry) for entry in found]


def _longest(work, scale: float, steps: int, count: int = 15) -> list[tuple[str, str, float, float]]:
    times, calls = defaultdict(float), Counter()
    for name, kind, took, _ in work:
        times[name, kind] += took
        calls[name, kind] += 1
    order = sorted(times, key=times.__getitem__, reverse=True)[:count]
    return [(name, kind, times[name, kind] * scale, calls[name, kind] / steps) for name, kind in order]
