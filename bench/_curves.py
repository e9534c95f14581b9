"""Curves of runs: read, drawn side by side, in a table.

Curves come from the runs' own ``evals.jsonl``: images, training FLOPs and seconds (evaluation and saving apart), Frechet
distance, accuracy and near-copies of class-conditional samples from the EMA.
"""

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch

from erw.checkpoint import locate
from erw.environment import fingerprint
from erw.sample import balanced_labels, generate, grid, load_run, to_uint8
from erw.teachers import load_teacher

AXES = (("flops", "training FLOPs"), ("seconds", "training seconds"), ("images", "training images"))
NAMES = {"sit": "SiT", "repa": "REPA", "erw": "ERW"}


def read_curve(run: Path) -> list[dict[str, float]]:
    """The evaluations of a run, in order of images."""
    rows = (run / "evals.jsonl").read_text(encoding="utf-8").splitlines()
    return sorted((json.loads(row) for row in rows), key=lambda row: row["images"])


def read_run(run: Path) -> dict[str, Any]:
    """``curve``, ``accounts`` and the newest ``checkpoint`` of a finished run's folder."""
    accounts = json.loads((run / "accounts.json").read_text(encoding="utf-8"))
    return {"curve": read_curve(run), "accounts": accounts, "checkpoint": locate(run).name}


def summarise(runs: dict[str, Path]) -> dict[str, Any]:
    """Curves, accounts and the teacher's own training of each run, with hardware and versions."""
    methods = {name: read_run(run) for name, run in runs.items()}
    return {"methods": methods, "teacher": teacher_cost(runs), **environment()}


def teacher_cost(runs: dict[str, Path]) -> dict[str, Any] | None:
    """What the training of the runs' own teacher cost, which is in no run's FLOPs; None without one."""
    names = {json.loads((run / "config.json").read_text(encoding="utf-8"))["teacher"]["name"] for run in runs.values()}
    trained = sorted(filter(trained_here, names))
    return {"name": trained[0], **teacher_training(trained[0])} if trained else None


def trained_here(name: str) -> bool:
    """Whether the teacher ``name`` is one whose own training we know: the digits', and those of ``erw encoder``."""
    return name.startswith(("digits-", "encoder:"))


def teacher_training(name: str) -> dict[str, float]:
    """``training_flops`` and ``training_seconds`` of a teacher that was `trained_here`."""
    teacher = load_teacher(name, torch.device("cpu"))
    return {"training_flops": teacher.training_flops, "training_seconds": teacher.training_seconds}


def environment() -> dict[str, Any]:
    """``hardware`` and ``versions`` (with commit and date) of this process."""
    seen = fingerprint(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    hardware = {key: seen.pop(key) for key in ("device", "device_memory_gib", "driver", "cpu", "cores", "threads")}
    return {"hardware": hardware, "versions": seen}


def draw_curves(summary: dict[str, Any], path: Path) -> None:
    """Frechet distance against FLOPs, seconds and images, a line for each method."""
    figure, panels = plt.subplots(1, len(AXES), figsize=(13, 4), sharey=True, layout="constrained")
    for panel, (key, label) in zip(panels, AXES, strict=True):
        for name, entry in summary["methods"].items():
            points = [(row[key], row["frechet"]) for row in entry["curve"]]
            panel.plot(*zip(*points, strict=True), marker="o", label=NAMES.get(name, name))
        panel.set(xlabel=label, yscale="log", xlim=(0, None))
        panel.grid(alpha=0.3, which="both")
    panels[0].set_ylabel("Frechet distance to held-out digits")
    panels[0].legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_samples(runs: dict[str, Path], path: Path, per_class: int = 6) -> None:
    """One labelled grid a method: a column for each class, from the EMA, the same noise for every method."""
    figure, panels = plt.subplots(1, len(runs), figsize=(4.4 * len(runs), 3.2), layout="constrained", squeeze=False)
    for panel, (name, run) in zip(panels[0], runs.items(), strict=True):
        config, model, _ = load_run(run, torch.device("cpu"))
        classes = config.model.num_classes
        images = generate(model, config.objective, config.sample, balanced_labels(classes * per_class, classes), seed=0)
        panel.imshow(grid(to_uint8(images), columns=classes), cmap="gray", interpolation="nearest")
        side = images.shape[-1] + 1
        panel.set_xticks([side * i + side // 2 - 1 for i in range(classes)], [str(i) for i in range(classes)])
        panel.set_yticks([])
        panel.set_title(f"{NAMES.get(name, name)}, {config.train.images:,} images")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def table(summary: dict[str, Any]) -> str:
    """The last point of each curve."""
    lines = [f"{'method':<8}{'images':>9}{'FLOPs':>11}{'seconds':>9}{'Frechet':>9}{'accuracy':>10}"]
    for name, entry in summary["methods"].items():
        last = entry["curve"][-1]
        lines.append(
            f"{NAMES.get(name, name):<8}{last['images']:>9,}{last['flops']:>11.3g}{last['seconds']:>9.1f}"
            f"{last['frechet']:>9.2f}{last['accuracy']:>10.3f}"
        )
    return "\n".join(lines)
