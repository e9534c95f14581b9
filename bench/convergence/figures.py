"""What a study's record says: means, intervals, paired differences. Pure functions, no files.

A record holds ``study``, ``settings`` (with ``seeds`` and ``variants``) and ``variants``: by name, ``runs``, each with its
``seed``, ``accounts`` and ``curve``, the rows of evals.jsonl. Curves are read three ways: at the end, where all have spent
the budget, or where the first of them has; at the largest training time that every run reached; at the largest number of
images that every run reached. Between two evaluations a reading is linear: in the logarithm for distances, in the figure
itself for shares and KID, which may be negative. A curve that flattens runs below that line, so what is read far from an
evaluation is a little too high. Nothing is read outside a
curve. A teacher whose features a run computed first is in its seconds.
"""

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from scipy.special import stdtrit

from erw.errors import UserError

# The name of a record's end among its readings: what its budget is in, or the papers' own lengths.
READINGS = {"end": "the end", "seconds": "equal seconds", "images": "equal images"}
BUDGETS = {"flops": "equal FLOPs", "images": "equal images", "seconds": "equal seconds", "preset": "the presets' own lengths"}
_LOGARITHMIC = ("frechet",)
_TOLERANCE = {"flops": 0.02, "images": 0.0, "seconds": 0.1}

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
        raise UserError(f"an interval needs two seeds, not {len(values)}: name more")
    mean, deviation = statistics.fmean(values), statistics.stdev(values)
    half = float(stdtrit(len(values) - 1, 0.975)) * deviation / math.sqrt(len(values))
    return Estimate(mean=mean, deviation=deviation, low=mean - half, high=mean + half, count=len(values))


def reading(curve: Curve, axis: str, at: float, figures: Iterable[str]) -> dict[str, float]:
    """``figures`` of ``curve`` where ``axis`` (flops, seconds or images) is ``at``; how, the module's docstring says.

    Raises `UserError` for a place before the first evaluation or after the last.
    """
    rows = sorted(curve, key=lambda row: row[axis])
    if not rows or not rows[0][axis] <= at <= rows[-1][axis]:
        span = f"from {rows[0][axis]:g} to {rows[-1][axis]:g}" if rows else "without evaluations"
        raise UserError(f"a curve {span} {axis} cannot be read at {at:g}: evaluate more often or train longer")
    after = next(row for row in rows if row[axis] >= at)
    before = max((row for row in rows if row[axis] <= at), key=lambda row: row[axis])
    width = after[axis] - before[axis]
    share = (at - before[axis]) / width if width else 0.0
    return {name: between(name, before[name], after[name], share) for name in figures}


def between(figure: str, before: float, after: float, share: float) -> float:
    """``figure`` a ``share`` of the way from one evaluation to the next."""
    if not share:
        return before
    if figure in _LOGARITHMIC:
        return math.exp(math.log(before) + share * (math.log(after) - math.log(before)))
    return before + share * (after - before)


def curve_of(run: dict[str, Any]) -> Curve:
    """The evaluations of ``run`` in order, the teacher's seconds in theirs."""
    teacher = run.get("accounts", {}).get("other", {}).get("teacher", 0.0)
    return [row | {"seconds": row["seconds"] + teacher} for row in sorted(run["curve"], key=lambda row: row["images"])]


def complete(record: Record) -> None:
    """Raise `UserError` unless every variant has a run of every seed."""
    study, seeds, variants = record["study"], record["settings"]["seeds"], record["settings"]["variants"]
    have = sum(len(entry["runs"]) for entry in record["variants"].values())
    for name in variants:
        if sorted(run["seed"] for run in record["variants"].get(name, {"runs": []})["runs"]) != sorted(seeds):
            raise UserError(
                f"the record of {study['name']} holds {have} of {len(seeds) * len(variants)} runs: start"
                f" python -m erw.bench.convergence {study['name']} again, it goes on"
            )


def uneven(record: Record) -> tuple[float, float] | None:
    """The least and the most that a run spent of the budget's unit, where that is not the same; None where it is, and for a
    study without a common budget.

    The same means: within 2% (10% of seconds, which a pilot foretold) and, for runs of few steps, a batch, which is as finely
    as they can be cut.
    """
    unit = record["study"]["budget"]["unit"]
    if unit == "preset":
        return None
    ends = [curve_of(run)[-1] for run in _runs(record)]
    least, most = min(row[unit] for row in ends), max(row[unit] for row in ends)
    batch = record["settings"]["batch"] * max(row[unit] / row["images"] for row in ends)
    return (least, most) if most - least > _TOLERANCE[unit] * least + batch else None


def common(record: Record, axis: str) -> float:
    """The largest ``axis`` (flops, seconds or images) that every run of every variant reached."""
    return min(curve_of(run)[-1][axis] for run in _runs(record))


def axes(record: Record) -> list[str]:
    """The readings beside the end that say something else than it and that every curve reaches back to."""
    return [axis for axis in _beside_the_end(record) if axis not in unreadable(record)]


def unreadable(record: Record) -> list[str]:
    """The readings beside the end that some run's first evaluation comes too late for."""
    runs = list(_runs(record))
    return [axis for axis in _beside_the_end(record) if max(curve_of(run)[0][axis] for run in runs) > common(record, axis)]


def _beside_the_end(record: Record) -> list[str]:
    return [axis for axis in ("seconds", "images") if axis != record["study"]["budget"]["unit"]]


def figures(record: Record) -> list[str]:
    """What the study reads off evaluations, the quality first."""
    return [record["study"]["quality"], *record["study"]["also"]]


def readings(record: Record, axis: str) -> dict[str, dict[int, dict[str, float]]]:
    """By variant and seed the study's figures: at the ``end``, else at the `common` place on ``axis``. Ends that are `uneven`
    are read at the common place of the budget's unit.

    Raises `UserError` for a record that is not `complete`.
    """
    complete(record)
    if axis == "end" and uneven(record):
        axis = record["study"]["budget"]["unit"]
    wanted, at = figures(record), None if axis == "end" else common(record, axis)
    found: dict[str, dict[int, dict[str, float]]] = {}
    for name, entry in record["variants"].items():
        found[name] = {}
        for run in entry["runs"]:
            curve = curve_of(run)
            place = ("images", curve[-1]["images"]) if at is None else (axis, at)
            found[name][run["seed"]] = reading(curve, *place, wanted)
    return found


def estimates(record: Record, axis: str) -> dict[str, dict[str, Estimate]]:
    """By variant and figure the `Estimate` over seeds of what `readings` gives."""
    found = readings(record, axis)
    return {name: {figure: estimate(row[figure] for row in seeds.values()) for figure in figures(record)}
            for name, seeds in found.items()}  # fmt: skip


def paired(ours: dict[int, dict[str, float]], theirs: dict[int, dict[str, float]], figure: str) -> Estimate:
    """The differences, ours less theirs, of ``figure`` seed by seed. Raises `UserError` where the seeds differ."""
    if ours.keys() != theirs.keys():
        raise UserError(f"seeds {sorted(ours)} and {sorted(theirs)} cannot be paired: run both variants on the same seeds")
    return estimate(ours[seed][figure] - theirs[seed][figure] for seed in sorted(ours))


def differences(record: Record, axis: str, figure: str | None = None) -> dict[tuple[str, str], Estimate]:
    """`paired` for those of the study's pairs that the record has both variants of; of the quality unless told otherwise."""
    found, figure = readings(record, axis), figure or record["study"]["quality"]
    return {(a, b): paired(found[a], found[b], figure) for a, b in record["study"]["compare"] if a in found and b in found}


def ranking(record: Record) -> list[str]:
    """The variants, best mean quality at the end first."""
    found, quality = estimates(record, "end"), record["study"]["quality"]
    return sorted(found, key=lambda name: found[name][quality].mean)


def _runs(record: Record) -> list[dict[str, Any]]:
    return [run for entry in record["variants"].values() for run in entry["runs"]]
