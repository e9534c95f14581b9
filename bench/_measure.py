"""Measures one pairing and writes it down as rows. Running out of memory is a result, not an accident."""

import gc
import math
import statistics
from dataclasses import dataclass
from functools import partial

import torch

from erw.bench._contest import Contestant, Pairing, Scene, build, shape_of
from erw.bench._timing import Deadline, Timing, interleave
from erw.bench.published import Published
from erw.clock import Stopwatch
from erw.ops import REFERENCE, OpSet

OUT_OF_MEMORY = "out of memory"
OUT_OF_TIME = "not measured: out of time"
# Seconds that a pairing must have left to be begun: models built, kernels compiled, rounds run.
NEEDED = {False: 20.0, True: 120.0}
# One measurement lasts about this long, so that the launch of its first step does not weigh.
MEASUREMENT_SECONDS = 0.3


@dataclass(frozen=True)
class Settings:
    """What holds for all pairings of a run. ``peak`` is the device's dense bf16 peak in TFLOP/s, where known."""

    device: torch.device
    rounds: int
    deadline: Deadline
    peak: float | None
    published: Published | None = None
    ops: OpSet = REFERENCE


@dataclass(frozen=True)
class Result:
    """One contestant's measurement. ``peak_bytes``: its weights, state and one step, inputs apart; None on a CPU."""

    timing: Timing
    calls: int
    peak_bytes: int | None
    numbers: dict[str, float]


def measure(pairing: Pairing, settings: Settings) -> dict:
    """The pairing's record: a row for each side and, where both were measured, how much faster ours is."""
    record = {"model": pairing.model, "batch": pairing.batch, "rival": pairing.rival.label, "speedup": None}
    sides = (pairing.rival, pairing.ours)
    if settings.device.type != "cuda" and pairing.rival.precision == "fp16":
        return record | _unmeasured(sides, "not measured: fp16 needs a GPU")
    if settings.deadline.left() < NEEDED[pairing.rival.compile]:
        return record | _unmeasured(sides, OUT_OF_TIME)
    found, interleaved = _found(pairing, settings)
    record["rows"] = [_row(side, found[side], interleaved, pairing, settings) for side in sides]
    rival, ours = (found[side] for side in sides)
    if isinstance(rival, Result) and isinstance(ours, Result):
        record["speedup"] = _speedup(rival.timing, ours.timing, interleaved)
    return record


def _found(pairing: Pairing, settings: Settings) -> tuple[dict[Contestant, Result | str], bool]:
    """A result or a status for each side, and whether they were measured in turn.

    Where the two do not run side by side, for want of memory or for a fault of one, each is tried alone.
    """
    scene, sides = Scene(shape_of(pairing.model), pairing.batch), (pairing.rival, pairing.ours)
    together = _attempt(sides, scene, settings)
    _free(pairing)
    if not isinstance(together, str):
        return together, True
    alone: dict[Contestant, Result | str] = {}
    for side in sides:
        found = OUT_OF_TIME if settings.deadline.left() <= 0 else _attempt((side,), scene, settings)
        _free(pairing)
        alone[side] = found if isinstance(found, str) else found[side]
    return alone, False


def _attempt(sides: tuple[Contestant, ...], scene: Scene, settings: Settings) -> dict[Contestant, Result] | str:
    """Build and time ``sides``. What goes wrong becomes a status: it must not cost the other pairings' results."""
    try:
        return _timed(sides, scene, settings)
    except Exception as error:
        first = (str(error).strip().splitlines() or ["no message"])[0]
        # cuBLAS and cuDNN report memory that they could not get as an error of their own.
        if isinstance(error, torch.OutOfMemoryError) or "ALLOC_FAILED" in first:
            return OUT_OF_MEMORY
        return f"failed: {type(error).__name__}: {first}"


def _timed(sides: tuple[Contestant, ...], scene: Scene, settings: Settings) -> dict[Contestant, Result]:
    device, inputs = settings.device, scene.inputs(settings.device)
    stopwatch, steps, peaks, calls = Stopwatch(device), {}, {}, {}
    for side in sides:
        held = _allocated(device)
        steps[side] = partial(build(side, scene, device, settings.published, settings.ops), *inputs)
        steps[side]()  # Compiles, and creates the optimizer's state.
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        seconds = stopwatch(steps[side])
        peaks[side] = torch.cuda.max_memory_allocated(device) - held if device.type == "cuda" else None
        calls[side] = 1 if device.type != "cuda" else min(20, max(1, math.ceil(MEASUREMENT_SECONDS / seconds)))
    names = {side.label: side for side in sides}
    timings = interleave(
        {label: steps[side] for label, side in names.items()},
        device=device,
        rounds=settings.rounds,
        warmup=1,
        calls={label: calls[side] for label, side in names.items()},
        deadline=settings.deadline,
    )
    return {side: Result(timings[label], calls[side], peaks[side], _numbers(steps[side])) for label, side in names.items()}


def _numbers(step: partial) -> dict[str, float]:
    """What one more step reports. Raises ArithmeticError for a loss that is not finite: then no training was timed."""
    numbers = {name: float(value) for name, value in step().items()}
    if not math.isfinite(numbers["loss"]):
        raise ArithmeticError(f"the loss is {numbers['loss']} after the timed steps")
    scaler = getattr(step.func, "scaler", None)
    if scaler is not None and scaler.is_enabled():
        numbers["loss_scale"] = scaler.get_scale()
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def _row(side: Contestant, result: Result | str, interleaved: bool, pairing: Pairing, settings: Settings) -> dict:
    if isinstance(result, str):
        return _empty_row(side, result)
    timing, batch = result.timing, pairing.batch
    tflops = Scene(shape_of(pairing.model), batch).flops_per_image * batch / timing.median / 1e12
    return _empty_row(side, "measured") | {
        "interleaved": interleaved,
        "rounds": len(timing.seconds),
        "steps_per_round": result.calls,
        "ms_per_step": {name: getattr(timing, name) * 1e3 for name in ("median", "p20", "p80")},
        "images_per_s": {"median": batch / timing.median, "p20": batch / timing.p80, "p80": batch / timing.p20},
        "peak_memory_gib": None if result.peak_bytes is None else result.peak_bytes / 2**30,
        "tflops": tflops,
        "mfu": tflops / settings.peak if settings.peak else None,
        "last_step": result.numbers,
    }


def _empty_row(side: Contestant, status: str) -> dict:
    return {"contestant": side.label, "precision": side.precision, "compile": side.compile, "status": status}


def _unmeasured(sides: tuple[Contestant, ...], status: str) -> dict:
    return {"rows": [_empty_row(side, status) for side in sides]}


def _speedup(rival: Timing, ours: Timing, interleaved: bool) -> dict[str, float | str]:
    """Rival's time over ours: the median of the rounds' ratios, or the ratio of medians where they ran apart."""
    if interleaved:
        rounds = [a / b for a, b in zip(rival.seconds, ours.seconds, strict=True)]
        return {"value": statistics.median(rounds), "of": "median of rounds"}
    return {"value": rival.median / ours.median, "of": "ratio of medians"}


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def _free(pairing: Pairing) -> None:
    """Give back what the last attempt held, and what torch.compile remembers of its models."""
    if pairing.rival.compile or pairing.ours.compile:
        torch.compiler.reset()
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
