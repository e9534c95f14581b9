"""The picture of a study: mean curves over seeds against each cost, and every seed's end."""

import statistics
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from erw.bench._curves import AXES
from erw.bench.convergence.figures import Record, curve_of, estimates, readings
from erw.bench.convergence.words import NAMES, at_end, label

# Okabe and Ito's colours, which the colour-blind tell apart; line and marker tell the variants apart in grey.
COLOURS = ("#009E73", "#0072B2", "#D55E00", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "so^DvP*"
LINES = ("-", "--", ":")


def draw(record: Record, path: Path) -> None:
    """Write ``path``: the mean quality, with a band of one standard deviation over seeds, against FLOPs, seconds and images;
    and the end of every seed, with mean and 95% interval. Raises `UserError` for a record that is not complete.
    """
    quality = record["study"]["quality"]
    ends = {name: [row[quality] for row in seeds.values()] for name, seeds in readings(record, "end").items()}
    means = {name: found[quality] for name, found in estimates(record, "end").items()}
    wide = max(1.25, 0.22 * len(ends))
    figure, panels = plt.subplots(1, 4, figsize=(13.2 + 3 * wide, 4.6), width_ratios=(1, 1, 1, wide), layout="constrained")
    for panel, (axis, text) in zip(panels, AXES, strict=False):
        for place, (name, entry) in enumerate(record["variants"].items()):
            _curve(panel, label(record, name), place, [curve_of(run) for run in entry["runs"]], axis, quality)
        panel.set(xlabel=text, xlim=(0, None))
        if min(value for values in ends.values() for value in values) > 0:
            panel.set_yscale("log")
            for ticks in (panel.yaxis.set_major_formatter, panel.yaxis.set_minor_formatter):
                ticks("{x:g}")
        panel.grid(alpha=0.25, which="both")
    panels[0].set_ylabel(NAMES.get(quality, quality))
    panels[0].legend(fontsize=8)
    for panel in panels[1:3]:
        panel.sharey(panels[0])
        panel.tick_params(labelleft=False, which="both")
    _ends(panels[3], {label(record, name): values for name, values in ends.items()}, list(means.values()))
    panels[3].set(title=f"at {at_end(record)}, one mark a seed", ylabel=f"final {NAMES.get(quality, quality)}")
    figure.suptitle(f"mean over {len(record['settings']['seeds'])} seeds; bands: one standard deviation; bars: 95% interval")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _look(place: int) -> dict[str, Any]:
    """Colour, marker and line of the variant at ``place``."""
    turn, rest = divmod(place, len(COLOURS))
    hollow = {"markerfacecolor": "white"} if turn % 2 else {}
    return {"color": COLOURS[rest], "marker": MARKERS[rest], "linestyle": LINES[turn % len(LINES)], **hollow}


def _curve(panel, name: str, place: int, curves: list[list[dict[str, float]]], axis: str, quality: str) -> None:
    """Evaluations of one number, one from each seed, make a point."""
    points = list(zip(*curves, strict=True))
    x = [statistics.fmean(row[axis] for row in rows) for rows in points]
    y = [statistics.fmean(row[quality] for row in rows) for rows in points]
    spread = [statistics.stdev(row[quality] for row in rows) for rows in points]
    look = _look(place)
    panel.plot(x, y, label=name, markersize=5, linewidth=1.6, **look)
    low, high = ([value + sign * s for value, s in zip(y, spread, strict=True)] for sign in (-1, 1))
    panel.fill_between(x, low, high, color=look["color"], alpha=0.15, linewidth=0)


def _ends(panel, ends: dict[str, list[float]], means: list[Any]) -> None:
    for place, (values, found) in enumerate(zip(ends.values(), means, strict=True)):
        look = _look(place) | {"linestyle": "none"}
        beside = [place - 0.3 + 0.3 * (index + 0.5) / len(values) for index in range(len(values))]
        panel.plot(beside, values, markersize=5, alpha=0.8, **look)
        bars = [[found.mean - found.low], [found.high - found.mean]]
        panel.errorbar([place + 0.2], [found.mean], bars, fmt="_", color=look["color"], markersize=14, capsize=4)
    turned = {"rotation": 40, "ha": "right"} if len(ends) > 6 else {}
    panel.set_xticks(range(len(ends)), [name if turned else name.replace(" ", "\n") for name in ends], fontsize=9, **turned)
    panel.set(xlim=(-0.5, len(ends) - 0.5), ylim=(min(0, min(map(min, ends.values()))), None))
    panel.grid(alpha=0.25, axis="y")
