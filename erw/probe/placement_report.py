"""A placement's record as a table and a figure."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from erw.probe.placement import MEASURES, NO_WARM_UP, summary

Record = dict[str, Any]


def markdown(record: Record) -> str:
    """The report's page."""
    return f"# Placement of ERW's warm-up\n\n{table(record)}\n"


def table(record: Record) -> str:
    """A line for each range: means over seeds, with the standard deviation where there are several."""
    found = summary(record)
    measures = _measures(found)
    lines = ["| blocks | " + " | ".join(MEASURES[name] for name in measures) + " |", "|" + "---|" * (len(measures) + 1)]
    for place, values in found.items():
        label = "no warm-up" if place == NO_WARM_UP else place.replace("-", " to ")
        lines.append(f"| {label} | " + " | ".join(_cell(values.get(name)) for name in measures) + " |")
    seeds = record["seeds"]
    many = f"mean (standard deviation) over {len(seeds)} seeds" if len(seeds) > 1 else "one seed"
    lines.append(
        f"\nWarm-up of {record['warmup_images']:,} images, then {record['full_images']:,} of the whole model without alignment;"
        f" no warm-up: the latter alone. Teacher {record['teacher']}; {record['held_out_images']:,} images,"
        f" {record['held_out']}; EMA weights; {many}."
    )
    return "\n".join(lines)


def figure(record: Record, path: Path) -> None:
    """A panel for each measure: every seed a dot, the mean a bar, no warm-up a dashed line."""
    found = summary(record)
    places, measures = [place for place in found if place != NO_WARM_UP], _measures(found)
    drawn, panels = plt.subplots(1, len(measures), figsize=(3.6 * len(measures), 3.4), layout="constrained", squeeze=False)
    for panel, name in zip(panels[0], measures, strict=True):
        for x, place in enumerate(places):
            values = [row[name] for row in record["rows"] if row["blocks"] == place]
            panel.plot([x] * len(values), values, "o", color="#D55E00", alpha=0.6, markersize=5)
            panel.plot([x], [found[place][name][0]], "_", color="black", markersize=22)
        if name in found[NO_WARM_UP]:
            panel.axhline(found[NO_WARM_UP][name][0], color="0.5", linestyle="--", label="no warm-up")
            panel.legend(fontsize=8)
        panel.set_xticks(range(len(places)), places)
        panel.set(title=MEASURES[name], xlabel="warmed-up blocks", xlim=(-0.5, len(places) - 0.5))
        panel.title.set_fontsize(9)
        panel.grid(alpha=0.25, axis="y")
    drawn.savefig(path, dpi=110)
    plt.close(drawn)


def _measures(found: dict[str, Any]) -> list[str]:
    return [name for name in MEASURES if any(name in values for values in found.values())]


def _cell(value: tuple[float, float | None] | None) -> str:
    if value is None:
        return ""
    mean, deviation = value
    return f"{mean:.3f}" if deviation is None else f"{mean:.3f} ({deviation:.3f})"
