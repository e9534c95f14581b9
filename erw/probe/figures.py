"""The three figures of a probe's record: a panel for each t, a line for each network, the untrained ones grey."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

Record = dict[str, Any]

# Okabe and Ito's colours, which the colour-blind tell apart; markers do in grey.
COLOURS = ("#009E73", "#0072B2", "#D55E00", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "so^Dv<>"


def semantic_gap(record: Record, path: Path) -> None:
    """Held-out accuracy of linear probes over the blocks, with the teacher's own as a line."""
    figure, panels = _panels(record)
    for panel, t in zip(panels, record["protocol"]["times"], strict=True):
        for name, look in _looks(record).items():
            _over_blocks(panel, record, name, t, "accuracy", look)
        label = f"{record['teacher']['name']} (teacher)"
        panel.axhline(record["teacher"]["accuracy"], color="black", linestyle=":", label=label)
    _finish(figure, panels, path, "block", "held-out accuracy of a linear probe")


def alignment(record: Record, path: Path) -> None:
    """CKNNA with the teacher over the blocks."""
    figure, panels = _panels(record)
    for panel, t in zip(panels, record["protocol"]["times"], strict=True):
        for name, look in _looks(record).items():
            _over_blocks(panel, record, name, t, "cknna", look)
    _finish(figure, panels, path, "block", f"CKNNA with {record['teacher']['name']}")


def progression(record: Record, path: Path) -> None:
    """CKNNA of the best block over training images; hollow within ERW's warm-up, which has only its own blocks."""
    figure, panels = _panels(record)
    rows, looks = record["progression"], _looks(record)
    for panel, t in zip(panels, record["protocol"]["times"], strict=True):
        for name in dict.fromkeys(row["run"] for row in rows):
            points = _best(rows, name, t)
            panel.plot([p["images"] for p in points], [p["cknna"] for p in points], label=name, **looks[name])
            warm = [p for p in points if p["phase"] == "warmup"]
            hollow = looks[name] | {"linestyle": "none", "markerfacecolor": "white"}
            panel.plot([p["images"] for p in warm], [p["cknna"] for p in warm], **hollow)
    _finish(figure, panels, path, "training images", f"CKNNA with {record['teacher']['name']}, best block")


FIGURES = {"semantic-gap.png": semantic_gap, "alignment.png": alignment, "progression.png": progression}


def _panels(record: Record):
    times = record["protocol"]["times"]
    size = (1.6 + 3.1 * len(times), 3.6)
    figure, panels = plt.subplots(1, len(times), figsize=size, sharey=True, layout="constrained", squeeze=False)
    for panel, t in zip(panels[0], times, strict=True):
        panel.set_title(f"t = {t:g}" + (" (data)" if t == 0 else ""))
    return figure, panels[0]


def _looks(record: Record) -> dict[str, dict[str, Any]]:
    """Colour and marker of each network."""
    looks = {}
    for place, name in enumerate(record["runs"]):
        looks[name] = {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)], "markersize": 5}
    for row in record["rows"]:
        looks.setdefault(row["run"], {"color": "0.6", "linestyle": "--", "marker": "x", "markersize": 4})
    return looks


def _over_blocks(panel, record: Record, name: str, t: float, measure: str, look: dict[str, Any]) -> None:
    rows = sorted((r for r in record["rows"] if r["run"] == name and r["t"] == t), key=lambda row: row["block"])
    panel.plot([row["block"] for row in rows], [row[measure] for row in rows], label=name, **look)
    panel.xaxis.get_major_locator().set_params(integer=True)


def _best(rows: list[dict[str, Any]], name: str, t: float) -> list[dict[str, Any]]:
    """The row of the best block at each of a run's checkpoints, by images."""
    best: dict[int, dict[str, Any]] = {}
    for row in rows:
        if row["run"] == name and row["t"] == t:
            best[row["images"]] = max(best.get(row["images"], row), row, key=lambda r: r["cknna"])
    return [best[images] for images in sorted(best)]


def _finish(figure, panels, path: Path, x: str, y: str) -> None:
    for panel in panels:
        panel.set_xlabel(x)
        panel.grid(alpha=0.25)
    panels[0].set_ylabel(y)
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
