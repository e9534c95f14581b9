"""From a run's reports to the points of a curve."""

import math
from typing import Any

from erw.report.record import RunRecord

Points = list[tuple[float, float]]
MOST_POINTS = 240


def curve(run: RunRecord, key: str) -> list[Points]:
    """(images, value) of each report that has ``key``, one list a phase: across a hand-over nothing goes on."""
    values = _speed(run.metrics) if key == "images_per_second" else [row.get(key) for row in run.metrics]
    phases: dict[Any, Points] = {}
    for row, value in zip(run.metrics, values, strict=True):
        if isinstance(value, float | int):
            phases.setdefault(row.get("phase"), []).append((row["images"], float(value)))
    return list(phases.values())


def _speed(rows: list[dict[str, Any]]) -> list[float | None]:
    """Images a second of training since the report before, for each row; the first one's is since the start.

    What a row itself says of its speed is the mean since its phase began, which hides a slow hour.
    """
    speeds: list[float | None] = []
    before = {"images": 0, "seconds": 0.0}
    for row in rows:
        seconds, images = row.get("seconds", before["seconds"]) - before["seconds"], row["images"] - before["images"]
        speeds.append(images / seconds if seconds > 0 and images > 0 else None)
        before = row
    return speeds


def thinned(points: Points, most: int = MOST_POINTS) -> Points:
    """At most ``most`` points: means over equal stretches. A stretch with a value that is not finite stays broken."""
    if len(points) <= most:
        return points
    size = -(-len(points) // most)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def smoothed(points: Points, width: int) -> Points:
    """The mean over ``width`` reports around each, fewer at the ends; reports that are not finite are left out."""
    half, means = width // 2, []
    for i, (x, _) in enumerate(points):
        near = [y for _, y in points[max(0, i - half) : i + half + 1] if math.isfinite(y)]
        if near:
            means.append((x, sum(near) / len(near)))
    return means
