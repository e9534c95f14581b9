"""Measures rows of a ladder, one at a time. Running out of memory is a result, not an accident."""

import gc
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch

from erw.bench._build import build, settled, unavailable
from erw.bench._ladder import Row, Setup
from erw.bench._profile import breakdown
from erw.bench._scene import Scene
from erw.bench._timing import Deadline, Timing, interleave
from erw.bench.published import Published
from erw.clock import Stopwatch

OUT_OF_MEMORY = "out of memory"
OUT_OF_TIME = "not measured: out of time"
# Seconds that a row must have left to be begun: models built, kernels compiled, rounds run.
NEEDED = {False: 20.0, True: 120.0}
# One measurement lasts about this long, so that the launch of its first step does not weigh.
MEASUREMENT_SECONDS = 0.3

Found = TypeVar("Found")


@dataclass(frozen=True)
class Settings:
    """What holds for all rows of a run."""

    device: torch.device
    rounds: int
    deadline: Deadline
    published: Published | None = None


@dataclass(frozen=True)
class Built:
    """A step that has run: it is compiled and has its optimizer's state. ``peak_bytes``: its weights, state and one step,
    inputs apart; None on a CPU. ``calls``: steps in one measurement."""

    setup: Setup
    step: partial | None
    calls: int
    peak_bytes: int | None


@dataclass(frozen=True)
class Result:
    """One row's measurement. ``to_anchor``: the anchor's time over this row's, the median of the rounds' ratios; the ratio
    of medians where the two did not run in turn (``interleaved``); None without an anchor."""

    built: Built
    timing: Timing
    to_anchor: float | None
    interleaved: bool
    profile: dict
    numbers: dict[str, float]


def attempt(function: Callable[[], Found]) -> Found | str:
    """What ``function`` gives, or what went wrong as a row's status: it must not cost the other rows' results."""
    try:
        return function()
    except Exception as error:
        first = (str(error).strip().splitlines() or ["no message"])[0]
        # cuBLAS and cuDNN report memory that they could not get as an error of their own.
        if isinstance(error, torch.OutOfMemoryError) or "ALLOC_FAILED" in first:
            return OUT_OF_MEMORY
        return f"failed: {type(error).__name__}: {first}"


class Bench:
    """Measures a scene's rows, the anchor first, then each in turn with it. The anchor is kept while the scene lasts: memory
    holds two steps, not all of them."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self._scene: Scene | None = None
        self._anchor: Built | str | None = None
        self._alone: dict[Scene, Timing] = {}  # the anchor's, measured by itself

    def measure(self, scene: Scene, row: Row, anchor: Row) -> Result | str:
        """A result, or why there is none. Where row and anchor do not run side by side, for want of memory or for a fault,
        the row is tried alone."""
        if scene != self._scene:
            self.clear()
            self._scene = scene
        if reason := unavailable(row.setup):
            return reason
        compiles = row.setup.compile or (anchor.setup.compile and self._anchor is None)
        if self.settings.deadline.left() < NEEDED[compiles]:
            return OUT_OF_TIME
        if row == anchor:
            return self._tried(lambda: self._alone_as_anchor(scene, row))
        if scene in self._alone:
            found = self._tried(lambda: self._in_turn(scene, row, anchor))
            if not isinstance(found, str):
                return found
            self._drop()
            if self.settings.deadline.left() <= 0:
                return OUT_OF_TIME
        return self._tried(lambda: self._by_itself(scene, row))

    def clear(self) -> None:
        """Give back the scene's anchor, and what torch.compile remembers of its models."""
        self._drop()
        torch.compiler.reset()
        self._scene = None

    def _drop(self) -> None:
        self._anchor = None
        _free()

    def _tried(self, measure: Callable[[], Result]) -> Result | str:
        found = attempt(measure)
        if isinstance(found, Result):
            if hasattr(found.built.step.func, "release"):
                found.built.step.func.release()
            # A step in a result would keep its weights.
            found = replace(found, built=replace(found.built, step=None))
        _free()
        return found

    def _alone_as_anchor(self, scene: Scene, row: Row) -> Result:
        built = self._anchor = self._build(scene, row)
        timing = self._timed({row.name: built})[row.name]
        self._alone[scene] = timing
        return self._result(built, timing, 1.0, True)

    def _in_turn(self, scene: Scene, row: Row, anchor: Row) -> Result:
        if self._anchor is None:
            self._anchor = self._build(scene, anchor)
        built = self._build(scene, row)
        timings = self._timed({anchor.name: self._anchor, row.name: built})
        theirs, timing = timings[anchor.name], timings[row.name]
        ratio = statistics.median(a / b for a, b in zip(theirs.seconds, timing.seconds, strict=True))
        return self._result(built, timing, ratio, True)

    def _by_itself(self, scene: Scene, row: Row) -> Result:
        built = self._build(scene, row)
        timing, alone = self._timed({row.name: built})[row.name], self._alone.get(scene)
        return self._result(built, timing, alone.median / timing.median if alone else None, False)

    def _build(self, scene: Scene, row: Row) -> Built:
        device, setup = self.settings.device, settled(row.setup, scene, self.settings.device)
        inputs, held = scene.inputs(device), _allocated(device)
        step = partial(build(setup, scene, device, self.settings.published), *inputs)
        step()  # Compiles, and creates the optimizer's state.
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        seconds = Stopwatch(device)(step)
        peak = torch.cuda.max_memory_allocated(device) - held if device.type == "cuda" else None
        calls = 1 if device.type != "cuda" else min(20, max(1, math.ceil(MEASUREMENT_SECONDS / seconds)))
        return Built(setup, step, calls, peak)

    def _timed(self, steps: dict[str, Built]) -> dict[str, Timing]:
        return interleave(
            {name: built.step for name, built in steps.items()},
            device=self.settings.device,
            rounds=self.settings.rounds,
            warmup=1,
            calls={name: built.calls for name, built in steps.items()},
            deadline=self.settings.deadline,
        )

    def _result(self, built: Built, timing: Timing, to_anchor: float | None, interleaved: bool) -> Result:
        numbers = _numbers(built.step)
        profile = attempt(lambda: breakdown(built.step, self.settings.device, timing.median))
        profile = {"share": None, "launches": None, "kernels": None, "why": profile} if isinstance(profile, str) else profile
        return Result(built, timing, to_anchor, interleaved, profile, numbers)


def _numbers(step: partial) -> dict[str, float]:
    """What one more step reports. Raises ArithmeticError for a loss that is not finite: then no training was timed."""
    numbers = {name: float(value) for name, value in step().items()}
    if not math.isfinite(numbers["loss"]):
        raise ArithmeticError(f"the loss is {numbers['loss']} after the timed steps")
    scaler = getattr(step.func, "scaler", None)
    if scaler is not None and scaler.is_enabled():
        numbers["loss_scale"] = scaler.get_scale()
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
