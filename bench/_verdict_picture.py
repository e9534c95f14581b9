"""The picture of a verdict: curves over seeds three ways, and every seed's end."""

import statistics
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from erw.bench._verdict import Record, estimates, readings
from erw.bench.convergence import AXES, NAMES

# Okabe and Ito's colours, which the colour-blind tell apart; line and marker tell the variants apart in grey.
COLOURS = {"sit": "#009E73", "repa": "#0072B2", "erw": "#D55E00"}
MARKERS = {"sit": "s", "repa": "o", "erw": "^"}


def draw(record: Record, path: Path) -> None:
    """Write ``path``: the mean Frechet distance, with a band of one standard deviation over seeds, against FLOPs, seconds and
    images; and the end of every seed, with mean and 95% interval. Raises `UserError` for a record that is not complete.
    """
    ends = {name: [row["frechet"] for row in seeds.values()] for name, seeds in readings(record, "flops").items()}
    figure, panels = plt.subplots(1, 4, figsize=(17, 4.4), width_ratios=(1, 1, 1, 1.25), layout="constrained")
    for panel, (axis, label) in zip(panels, AXES, strict=False):
        for name, entry in record["variants"].items():
            _curve(panel, name, [run["curve"] for run in entry["runs"]], axis)
        panel.set(xlabel=label, yscale="log", xlim=(0, None))
        for ticks in (panel.yaxis.set_major_formatter, panel.yaxis.set_minor_formatter):
            ticks("{x:g}")
        panel.grid(alpha=0.25, which="both")
    panels[0].set_ylabel("Frechet distance to held-out digits")
    panels[0].legend()
    for panel in panels[1:3]:
        panel.sharey(panels[0])
        panel.tick_params(labelleft=False, which="both")
    _ends(panels[3], ends, {name: found["frechet"] for name, found in estimates(record, "flops").items()})
    figure.suptitle(f"mean over {len(record['settings']['seeds'])} seeds; bands: one standard deviation; bars: 95% interval")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _look(name: str) -> dict[str, Any]:
    """Colour and marker by method; dashed and hollow for the supervised teacher."""
    method, _, teacher = name.partition("-")
    hollow = {"markerfacecolor": "white"} if teacher else {}
    return {"color": COLOURS[method], "marker": MARKERS[method], "linestyle": "--" if teacher else "-", **hollow}


def _curve(panel, name: str, curves: list[list[dict[str, float]]], axis: str) -> None:
    """Evaluations of one number, one from each seed, make a point."""
    points = list(zip(*(sorted(curve, key=lambda row: row["images"]) for curve in curves), strict=True))
    x = [statistics.fmean(row[axis] for row in rows) for rows in points]
    y = [statistics.fmean(row["frechet"] for row in rows) for rows in points]
    spread = [statistics.stdev(row["frechet"] for row in rows) for rows in points]
    look = _look(name)
    panel.plot(x, y, label=NAMES[name], markersize=5, linewidth=1.6, **look)
    low, high = ([value + sign * s for value, s in zip(y, spread, strict=True)] for sign in (-1, 1))
    panel.fill_between(x, low, high, color=look["color"], alpha=0.15, linewidth=0)


def _ends(panel, ends: dict[str, list[float]], means: dict[str, Any]) -> None:
    for place, (name, values) in enumerate(ends.items()):
        look, found = _look(name), means[name]
        look["linestyle"] = "none"
        beside = [place - 0.3 + 0.3 * (index + 0.5) / len(values) for index in range(len(values))]
        panel.plot(beside, values, markersize=5, alpha=0.8, **look)
        bars = [[found.mean - found.low], [found.high - found.mean]]
        panel.errorbar([place + 0.2], [found.mean], bars, fmt="_", color=look["color"], markersize=14, capsize=4)
    panel.set_xticks(range(len(ends)), [NAMES[name].replace(" ", "\n") for name in ends], fontsize=9)
    panel.set(title="at equal FLOPs, one mark a seed", xlim=(-0.5, len(ends) - 0.5), ylim=(0, None))
    panel.set_ylabel("final Frechet distance")
    panel.grid(alpha=0.25, axis="y")
