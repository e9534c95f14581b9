"""What it takes to get as far as another method: FLOPs, seconds and images to its final quality, with bootstrap intervals.

A variant's curve is the mean over seeds, evaluation by evaluation. The target is the last point of the other variant's. Where
the curve first reaches it is read between evaluations as everything is (`erw.bench.convergence.figures`); the other variant's
own cost is read the same way off its own curve. Intervals resample the seeds, the same ones for both variants: 95%
percentiles. Of few seeds such an interval is too narrow rather than too wide.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from erw.bench.convergence.figures import Curve, Record, complete, curve_of

RESAMPLES = 2000
AXES = ("flops", "seconds", "images")


@dataclass(frozen=True, kw_only=True)
class Reach:
    """``ratio`` = what ``ours`` needs / what ``theirs`` needs, to the final quality of ``theirs``; infinite where it is not
    reached.

    ``low`` to ``high`` is the 95% bootstrap interval, ``missed`` the share of the resamples that do not reach it. ``first``:
    the target was met by the first evaluation already, so that the ratio is at most this.
    """

    ours: str
    theirs: str
    axis: str
    ratio: float
    low: float
    high: float
    missed: float
    first: bool


def mean_curve(curves: Sequence[Curve], axis: str, quality: str) -> list[tuple[float, float]]:
    """(place on ``axis``, quality) of each evaluation, means over seeds."""
    rows = zip(*curves, strict=True)
    return [(statistics.fmean(row[axis] for row in at), statistics.fmean(row[quality] for row in at)) for at in rows]


def place_of(points: list[tuple[float, float]], target: float) -> tuple[float, bool]:
    """Where ``points`` first get down to ``target``, infinite where they do not, and whether the first point does."""
    (before, above), *rest = points
    if above <= target:
        return before, True
    for after, value in rest:
        if value <= target:
            return before + _share(above, value, target) * (after - before), False
        before, above = after, value
    return math.inf, False


def _share(above: float, below: float, target: float) -> float:
    """How far from ``above`` to ``below`` the ``target`` lies: in logarithms where all are positive."""
    if min(above, below, target) > 0:
        above, below, target = math.log(above), math.log(below), math.log(target)
    return (above - target) / (above - below)


def reaches(record: Record, resamples: int = RESAMPLES) -> list[Reach]:
    """A `Reach` for each of the study's pairs and each axis. Raises `UserError` for a record that is not complete."""
    complete(record)
    quality = record["study"]["quality"]
    curves = {name: [curve_of(run) for run in sorted(entry["runs"], key=lambda run: run["seed"])]
              for name, entry in record["variants"].items()}  # fmt: skip
    pairs = [(a, b) for a, b in record["study"]["reach"] if a in curves and b in curves]
    return [_reach(a, b, axis, curves[a], curves[b], quality, resamples) for a, b in pairs for axis in AXES]


def _reach(ours: str, theirs: str, axis: str, mine: list[Curve], other: list[Curve], quality: str, resamples: int) -> Reach:
    everything = range(len(mine))
    ratio, first = _ratio(mine, other, everything, axis, quality)
    random = np.random.default_rng(0)
    drawn = [_ratio(mine, other, random.integers(len(mine), size=len(mine)), axis, quality)[0] for _ in range(resamples)]
    low, high = (float(np.quantile(drawn, at, method="nearest")) for at in (0.025, 0.975))
    missed = sum(math.isinf(value) for value in drawn) / resamples
    return Reach(ours=ours, theirs=theirs, axis=axis, ratio=ratio, low=low, high=high, missed=missed, first=first)


def _ratio(mine: list[Curve], other: list[Curve], seeds: Sequence[int], axis: str, quality: str) -> tuple[float, bool]:
    theirs = mean_curve([other[seed] for seed in seeds], axis, quality)
    target = theirs[-1][1]
    reached, first = place_of(mean_curve([mine[seed] for seed in seeds], axis, quality), target)
    return reached / place_of(theirs, target)[0], first
