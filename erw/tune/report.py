"""The choice of a pilot: options to train with, a table, a figure."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

Record = dict[str, Any]


def options(record: Record) -> str:
    """What to add to the command line of the run."""
    raised = f" --method.projection_depth {record['projection_depth']}" if record["projection_raised"] else ""
    return f"--method.depth {record['depth']} --method.warmup_images {record['warmup_images']}{raised}"


def markdown(record: Record) -> str:
    """The page: the choice, and what it was read off."""
    spent = record["pilot_share"]
    lines = [
        f"# Warm-up for {record['preset']}", "",
        f"`{options(record)}`", "",
        f"Blocks 1 to {record['depth']} for {record['warmup_images']:,} images: {record['share_of_pilot'] * spent:.1%} of the"
        f" run's {record['budget_flops']:.3g} training FLOPs. Read off {len(record['depths'])} depths x"
        f" {len(record['seeds'])} seeds, each trained on {spent:.0%} of those FLOPs; seeds"
        f" {', '.join(map(str, record['seeds']))}, which a result should not use.", "",
        "| depth | elbow, share of the run's FLOPs | alignment loss at the choice's FLOPs | at the pilot's end |",
        "|---|---|---|---|",
    ]  # fmt: skip
    at = round(record["share_of_pilot"] * len(next(iter(record["depths"].values()))["losses"])) - 1
    for depth, found in record["depths"].items():
        chosen = " (chosen)" * (int(depth) == record["depth"])
        losses = found["losses"]
        lines.append(f"| {depth}{chosen} | {found['elbow'] * spent:.1%} | {losses[at]:.4f} | {losses[-1]:.4f} |")
    lines += ["", _LIMITS, ""]
    return "\n".join(lines)


_LIMITS = (
    "The elbow depends on how far the pilot went: a longer one puts it later. What a warm-up is worth to the samples is not"
    " measured here; `erw probe --placement` and a study (`erw.bench.convergence`) do."
)


def figure(record: Record, path: Path) -> None:
    """Alignment loss against FLOPs for each depth, elbows marked; thin lines are seeds."""
    drawn, panel = plt.subplots(figsize=(6.4, 4), layout="constrained")
    spent = record["pilot_share"]
    for place, (depth, found) in enumerate(record["depths"].items()):
        bins = len(found["losses"])
        x = [(number + 0.5) / bins * spent for number in range(bins)]
        for losses in found["seeds"]:
            panel.plot(x, losses, color=f"C{place}", linewidth=0.6, alpha=0.5)
        panel.plot(x, found["losses"], color=f"C{place}", linewidth=1.8, label=f"blocks 1 to {depth}")
        panel.plot([found["elbow"] * spent], [found["losses"][round(found["elbow"] * bins) - 1]], "o", color=f"C{place}")
    panel.axvline(record["share_of_pilot"] * spent, color="0.5", linestyle="--", label="chosen length")
    panel.set(xlabel="share of the run's training FLOPs", ylabel="alignment loss", xlim=(0, spent))
    panel.legend()
    panel.grid(alpha=0.25)
    drawn.savefig(path, dpi=110)
    plt.close(drawn)
