"""How long and how deep to warm up, read off alignment curves.

Length: a warm-up pays while the alignment loss falls fast and stops paying on the plateau. The curve is cut into bins of
equal FLOPs, both axes are scaled to 0 .. 1, and the warm-up ends where the curve is farthest below its chord (the elbow;
after Satopaa et al., "Finding a 'kneedle' in a haystack", 2011). Depth: the one whose alignment loss is lowest at the
common elbow, so for equal FLOPs.
"""

import statistics
from dataclasses import dataclass
from typing import Any

from erw.errors import UserError

Curve = list[tuple[float, float]]  # (share of the pilot's FLOPs, alignment loss), in order
BINS = 20


@dataclass(frozen=True, kw_only=True)
class Choice:
    """``depth``, and the warm-up's ``share`` of the pilot's FLOPs."""

    depth: int
    share: float


def binned(curve: Curve, bins: int = BINS) -> list[float]:
    """Mean loss in each of ``bins`` parts of equal FLOPs. Raises `UserError` for a curve with an empty part."""
    parts: list[list[float]] = [[] for _ in range(bins)]
    for place, loss in curve:
        parts[min(bins - 1, int(place * bins))].append(loss)
    if not all(parts):
        raise UserError(f"a pilot's curve of {len(curve)} points is too short to see a plateau in: raise --share")
    return [statistics.fmean(part) for part in parts]


def mean_of(curves: list[Curve]) -> list[float]:
    """Bin by bin over seeds."""
    return [statistics.fmean(values) for values in zip(*map(binned, curves), strict=True)]


def elbow(losses: list[float]) -> float:
    """The share of the curve at which ``losses``, one a bin, is farthest below its chord; at the end of a bin.

    Raises `UserError` for a loss that does not fall.
    """
    first, last = losses[0], losses[-1]
    if last >= first:
        raise UserError("the alignment loss of the pilot does not fall: look at the teacher and the learning rate")
    gains = [(first - loss) / (first - last) - place / (len(losses) - 1) for place, loss in enumerate(losses)]
    return (gains.index(max(gains)) + 1) / len(losses)


def choose(curves: dict[int, list[Curve]]) -> Choice:
    """Depth and length for the curves of several depths, some seeds each, all over the same FLOPs."""
    means = {depth: mean_of(found) for depth, found in curves.items()}
    ends = {depth: elbow(losses) for depth, losses in means.items()}
    common = statistics.median_low(sorted(ends.values()))
    at = round(common * BINS) - 1
    depth = min(means, key=lambda d: means[d][at])
    return Choice(depth=depth, share=ends[depth])


def as_record(curves: dict[int, list[Curve]], choice: Choice, **facts: Any) -> dict[str, Any]:
    """What `erw.tune.report` shows: the choice, each depth's binned loss and elbow, and ``facts``."""
    depths = {}
    for depth, found in curves.items():
        losses = mean_of(found)
        depths[str(depth)] = {"losses": losses, "elbow": elbow(losses), "seeds": [binned(curve) for curve in found]}
    return {"what": "tune-warmup", "depth": choice.depth, "share_of_pilot": choice.share, "depths": depths, **facts}
