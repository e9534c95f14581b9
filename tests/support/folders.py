"""Folders as runs leave them, written without training: for what reads them."""

import json
from pathlib import Path

import torch

from erw.build import build_step, public_buffers
from erw.checkpoint import Meta, save
from erw.config import TrainConfig
from erw.optim import WEIGHTS
from erw.settings import to_dict
from erw.step import public_name
from tiny import BATCH

START = {
    "images": 0,
    "ranks": 1,
    "commit": "abc123def",
    "dirty": False,
    "torch": "2.14.1",
    "device": "a CPU",
    "date": "2026-01-02",
}


def report_row(images: int, **values) -> dict:
    """A row of metrics.jsonl."""
    row = {"images": images, "loss": 1.0 / images, "velocity": 1.0 / images, "grad_norm": 0.5, "phase": "train", "lr": 1e-3}
    return row | {"images_per_second": 100.0, "seconds": images / 100, "flops": images * 1e6} | values


def write_rows(file: Path, rows: list[dict]) -> None:
    """A file of JSON Lines."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_run(folder: Path, config: TrainConfig, *, rows: list[dict] | None = None, evals: tuple[dict, ...] = (),
              starts: tuple[dict, ...] = (START,), ended: bool = True) -> Path:  # fmt: skip
    """A run's folder with a report at every batch, or the ``rows`` given; ``ended``: with accounts.json."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(to_dict(config)), encoding="utf-8")
    steps = range(BATCH, config.train.images + 1, BATCH)
    rows = [report_row(images) for images in steps] if rows is None else rows
    for name, content in (("metrics", rows), ("evals", evals), ("starts", starts)):
        if content:
            write_rows(folder / f"{name}.jsonl", list(content))
    if ended:
        images = config.train.images
        phase = {"images": images, "seconds": images / 100, "flops": images * 1e6, "device_seconds": images / 100}
        accounts = {"images": images, "device": "a CPU", "phases": {"train": phase}, "other": {"evaluation": 3.0}}
        (folder / "accounts.json").write_text(json.dumps(accounts), encoding="utf-8")
    return folder


def write_checkpoint(run: Path, config: TrainConfig, images: int, seed: int = 0) -> Path:
    """A checkpoint of random weights, EMA and raw ones, at ``images``; heads too. Of a warm-up only what it has."""
    phase = config.method.phase(max(images - 1, 0))
    step = build_step(config, phase)
    generator = torch.Generator().manual_seed(seed)

    def read(key: str) -> dict[str, torch.Tensor]:
        return {public_name(n): torch.randn(p.shape, generator=generator) * 0.1 for n, p in step.named_parameters()}

    entry = {"images": images, "seconds": 2.0, "flops": 3.5e9, "device_seconds": 7200.0}
    meta = Meta(images=images, phase=phase.name, steps=images // BATCH, config=to_dict(config),
                accounts={"phases": {phase.name: entry}, "other": {"evaluation": 3.0}})  # fmt: skip
    return save(run / "checkpoints", meta, read, public_buffers(step), keep=9, writes=True, keys=(WEIGHTS, "ema"))
