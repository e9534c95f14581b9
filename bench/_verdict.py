"""What the record of `erw.bench.verdict` says: means, intervals, paired differences. Pure functions, no files.

A record holds ``settings`` (with ``seeds`` and ``variants``) and ``variants``: by name, ``runs``, each with its ``seed`` and
``curve``, the rows of evals.jsonl. Curves are read three ways: at the end, where all have spent the same FLOPs; at the largest
training time that every run reached; at the largest number of images that every run reached. Between two evaluations a reading
is linear: in the logarithm for the Frechet distance, in the figure itself for the shares. A curve that flattens runs below
that line, so what is read far from an evaluation is a little too high. Nothing is read outside a curve.
"""

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from scipy.special import stdtrit

from erw.bench.convergence import NAMES
from erw.errors import UserError

FIGURES = ("frechet", "accuracy", "memorised")
READINGS = {"flops": "equal FLOPs", "seconds": "equal seconds", "images": "equal images"}
# Each against plain SiT, then ERW against REPA under either teacher.
PAIRS = (
    ("repa", "sit"), ("erw", "sit"), ("repa-supervised", "sit"), ("erw-supervised", "sit"),
    ("erw", "repa"), ("erw-supervised", "repa-supervised"),
)  # fmt: skip
_TOLERANCE = 0.02

Record = dict[str, Any]
Curve = list[dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """``mean``, standard ``deviation`` (divisor N - 1) and 95% interval ``low`` to ``high`` of the mean of ``count`` values."""

    mean: float
    deviation: float
    low: float
    high: float
    count: int


def estimate(values: Iterable[float]) -> Estimate:
    """Student's t interval over ``values``, one a seed. Raises `UserError` for fewer than two."""
    values = list(values)
    if len(values) < 2:
        raise UserError(f"an interval needs two seeds, not {len(values)}: name more with --seeds")
    mean, deviation = statistics.fmean(values), statistics.stdev(values)
    half = float(stdtrit(len(values) - 1, 0.975)) * deviation / math.sqrt(len(values))
    return Estimate(mean=mean, deviation=deviation, low=mean - half, high=mean + half, count=len(values))


def reading(curve: Curve, axis: str, at: float) -> dict[str, float]:
    """The `FIGURES` of ``curve`` where ``axis`` (flops, seconds or images) is ``at``; how, the module's docstring says.

    Raises `UserError` for a place before the first evaluation or after the last.
    """
    rows = sorted(curve, key=lambda row: row[axis])
    if not rows or not rows[0][axis] <= at <= rows[-1][axis]:
        span = f"from {rows[0][axis]:g} to {rows[-1][axis]:g}" if rows else "without evaluations"
        raise UserError(f"a curve {span} {axis} cannot be read at {at:g}: set --eval.every lower or train longer")
    after = next(row for row in rows if row[axis] >= at)
    before = max((row for row in rows if row[axis] <= at), key=lambda row: row[axis])
    width = after[axis] - before[axis]
    share = (at - before[axis]) / width if width else 0.0
    found = {name: before[name] + share * (after[name] - before[name]) for name in FIGURES}
    if share:
        ends = math.log(before["frechet"]), math.log(after["frechet"])
        found["frechet"] = math.exp(ends[0] + share * (ends[1] - ends[0]))
    else:
        found["frechet"] = before["frechet"]
    return found


def complete(record: Record) -> None:
    """Raise `UserError` unless every variant has a run of every seed, and all runs spent the same FLOPs.

    The same means: within 2% and, for runs of few steps, a batch, which is as finely as they can be cut.
    """
    seeds, variants = record["settings"]["seeds"], record["settings"]["variants"]
    have = sum(len(entry["runs"]) for entry in record["variants"].values())
    for name in variants:
        if sorted(run["seed"] for run in record["variants"].get(name, {"runs": []})["runs"]) != sorted(seeds):
            raise UserError(
                f"the verdict's record holds {have} of {len(seeds) * len(variants)} runs: start python -m erw.bench.verdict"
                " again, it goes on"
            )
    ends = [run["curve"][-1] for run in _runs(record)]
    least, most = min(row["flops"] for row in ends), max(row["flops"] for row in ends)
    batch = record["settings"]["batch"] * max(row["flops"] / row["images"] for row in ends)
    if most - least > _TOLERANCE * least + batch:
        raise UserError(f"training FLOPs run from {least:.4g} to {most:.4g}: train the presets at one budget, --out elsewhere")


def common(record: Record, axis: str) -> float:
    """The largest ``axis`` (flops, seconds or images) that every run of every variant reached."""
    return min(max(row[axis] for row in run["curve"]) for run in _runs(record))


def readings(record: Record, axis: str) -> dict[str, dict[int, dict[str, float]]]:
    """By variant and seed the `FIGURES`: at the end for ``flops``, else at the `common` place on ``axis``.

    Raises `UserError` for a record that is not `complete`.
    """
    complete(record)
    at = None if axis == "flops" else common(record, axis)
    found = {}
    for name, entry in record["variants"].items():
        found[name] = {}
        for run in entry["runs"]:
            place = max(row["images"] for row in run["curve"]) if at is None else at
            found[name][run["seed"]] = reading(run["curve"], "images" if at is None else axis, place)
    return found


def estimates(record: Record, axis: str) -> dict[str, dict[str, Estimate]]:
    """By variant and figure the `Estimate` over seeds of what `readings` gives."""
    found = readings(record, axis)
    return {name: {figure: estimate(row[figure] for row in seeds.values()) for figure in FIGURES}
            for name, seeds in found.items()}  # fmt: skip


def paired(ours: dict[int, dict[str, float]], theirs: dict[int, dict[str, float]], figure: str = "frechet") -> Estimate:
    """The differences, ours less theirs, of ``figure`` seed by seed. Raises `UserError` where the seeds differ."""
    if ours.keys() != theirs.keys():
        raise UserError(f"seeds {sorted(ours)} and {sorted(theirs)} cannot be paired: run both variants on the same --seeds")
    return estimate(ours[seed][figure] - theirs[seed][figure] for seed in sorted(ours))


def differences(record: Record, axis: str, figure: str = "frechet") -> dict[tuple[str, str], Estimate]:
    """`paired` for those of `PAIRS` that the record has both variants of."""
    found = readings(record, axis)
    return {(a, b): paired(found[a], found[b], figure) for a, b in PAIRS if a in found and b in found}


def words(ours: str, theirs: str, difference: Estimate) -> str:
    """``difference``, ours less theirs, in a sentence: below or above where the interval leaves zero out, else neither."""
    how = _how(difference)
    seeds = f"over {difference.count} seeds"
    if how is None:
        return f"no difference shown between {ours} and {theirs}: {ours} less {theirs} is {_signed(difference)} {seeds}"
    return f"{ours} {how} {theirs} by {_sized(difference)} {seeds}"


def lines(record: Record, axes: Iterable[str] = ("seconds", "images")) -> list[str]:
    """A sentence for each pair: the Frechet distance at equal FLOPs, then read equally far along each of ``axes``.

    Raises `UserError` for a record that is not `complete` and for a curve that begins too late to be read.
    """
    ends, others = differences(record, "flops"), {axis: differences(record, axis) for axis in axes}
    sentences = []
    for (ours, theirs), end in ends.items():
        parts = [f"{words(NAMES[ours], NAMES[theirs], end)} at {READINGS['flops']}"]
        for axis, found in others.items():
            difference = found[ours, theirs]
            how = _how(difference)
            short = f"{how} by {_sized(difference)}" if how else f"no difference shown, {_signed(difference)}"
            parts.append(f"at {READINGS[axis]} {short}")
        sentences.append("; ".join(parts) + ".")
    return sentences


def number(value: float) -> str:
    """Two decimals, or two digits where those would say too little."""
    return f"{value:.2f}" if round(abs(value), 3) >= 0.1 or value == 0 else f"{value:.2g}"


def _how(difference: Estimate) -> str | None:
    """below, above, or None where the interval holds zero."""
    return "below" if difference.high < 0 else "above" if difference.low > 0 else None


def _sized(difference: Estimate) -> str:
    """The size of a difference that has a sign, with its interval."""
    low, high = sorted((abs(difference.low), abs(difference.high)))
    return f"{number(abs(difference.mean))} (95% {number(low)} to {number(high)})"


def _signed(difference: Estimate) -> str:
    return f"{number(difference.mean)} (95% {number(difference.low)} to {number(difference.high)})"


def _runs(record: Record) -> list[dict[str, Any]]:
    return [run for entry in record["variants"].values() for run in entry["runs"]]
