"""The pictures of ladder records: bars of one record, and speed over commits."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

# Okabe and Ito's colours, which the colour-blind tell apart.
COLOURS = {"reference": "#999999", "ladder": "#0072B2", "side": "#56B4E9"}
_FLOOR = "#D55E00"


def draw_ladder(content: dict, path: Path) -> None:
    """Write ``path``: for each scene images/s of every measured row, with p20 and p80, and the full phase's floor as a line."""
    scenes = [scene for scene in content["scenes"] if any(row["status"] == "measured" for row in scene["rows"])]
    if not scenes:
        return
    sizes = [sum(row["status"] == "measured" for row in scene["rows"]) for scene in scenes]
    figure, panels = plt.subplots(
        len(scenes), 1, figsize=(9, 1.2 * len(scenes) + 0.32 * sum(sizes)), height_ratios=[size + 2 for size in sizes],
        layout="constrained", squeeze=False,
    )  # fmt: skip
    for panel, scene in zip(panels[:, 0], scenes, strict=True):
        _bars(panel, scene)
    environment = content["environment"]
    dry = ", dry run: no measurement" if content["dry_run"] else ""
    figure.suptitle(f"{environment['device']}, torch {environment['torch']}, commit {environment['commit']}{dry}", fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _bars(panel, scene: dict) -> None:
    rows = [row for row in scene["rows"] if row["status"] == "measured"]
    speeds = [row["images_per_s"] for row in rows]
    medians = [speed["median"] for speed in speeds]
    spread = [[s["median"] - s["p20"] for s in speeds], [s["p80"] - s["median"] for s in speeds]]
    panel.barh(range(len(rows)), medians, xerr=spread, color=[COLOURS[row["kind"]] for row in rows], error_kw={"lw": 1})
    panel.bar_label(panel.containers[-1], labels=[f" {value:.4g}" for value in medians], fontsize=7)
    panel.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=8)
    panel.invert_yaxis()
    for floor in scene["floors"]:
        if floor["phase"] == "full":
            panel.axvline(scene["batch"] / min(floor["seconds"].values()), color=_FLOOR, label="floor")
            panel.legend(loc="lower right", fontsize=8)
    panel.set(xlabel="images/s", xlim=(0, None))
    panel.set_title(f"{scene['model']}, {scene['tokens']} tokens, batch {scene['batch']}", fontsize=9)
    panel.grid(alpha=0.25, axis="x")


def draw_history(series: dict[str, dict[str, list[tuple[str, float]]]], path: Path) -> None:
    """Write ``path``: a panel for each title of ``series``, with a line of (commit, images/s) in order for each name in it."""
    figure, panels = plt.subplots(len(series), 1, figsize=(9, 3 * len(series)), layout="constrained", squeeze=False)
    for panel, (title, lines) in zip(panels[:, 0], series.items(), strict=True):
        # A commit that was measured twice is two points.
        commits = max(lines.values(), key=len)
        for (name, points), marker in zip(lines.items(), "osD^v", strict=False):
            panel.plot(range(len(points)), [speed for _, speed in points], marker=marker, label=name)
        panel.set_xticks(range(len(commits)), [commit for commit, _ in commits], fontsize=7, rotation=30)
        panel.set(ylabel="images/s", ylim=(0, None))
        panel.set_title(title, fontsize=9)
        panel.grid(alpha=0.25)
        panel.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
