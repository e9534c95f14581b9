"""Seconds an image, by variant and phase, on this machine: what turns a budget of seconds into images.

A few steps of every variant, in turns, twice. A phase's first steps (compilation, caches) are left out: the rate is taken from
the second half of each phase, the better of the two turns.
"""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from erw.align import Erw
from erw.bench.convergence.plan import settings_of
from erw.bench.convergence.study import Study
from erw.config import TrainConfig
from erw.errors import UserError
from erw.files import json_bytes, whole
from train_ds import train

STEPS = 40
TURNS = 2
_SEED = 1_000_000  # no study's own


def rates(study: Study, file: Path, environment: dict[str, Any], steps: int = STEPS) -> dict[str, dict[str, float]]:
    """By variant and phase; measured once and kept in ``file``, so that a study that goes on keeps its plan.

    Raises `UserError` for a file of another machine.
    """
    if file.exists():
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["environment"] != environment:
            raise UserError(f"{file} was measured on another machine, with other threads or versions: name another --out")
        return kept["rates"]
    found: dict[str, dict[str, float]] = {}
    for _ in range(TURNS):
        for name in study.variants:
            for phase, seconds in _measured(_short(settings_of(study, study.variants[name]), steps)).items():
                found.setdefault(name, {})[phase] = min(seconds, found.get(name, {}).get(phase, seconds))
    with whole(file) as stream:
        stream.write(json_bytes({"environment": environment, "steps": steps, "rates": found}))
    return found


def _short(config: TrainConfig, steps: int) -> TrainConfig:
    """``steps`` of every phase, a line of metrics at half and end of each, nothing judged."""
    batch, method, images = config.train.batch, config.method, steps * config.train.batch
    if isinstance(method, Erw):
        method, images = replace(method, warmup_images=images), 2 * images
    run = replace(config.train, images=images, log_every=steps // 2 * batch, seed=_SEED, save_every=0, tensorboard=False)
    return replace(config, method=method, train=run, eval=replace(config.eval, name="none", reference="none"))


def _measured(config: TrainConfig) -> dict[str, float]:
    """Seconds an image of each phase, from the lines in the middle and at the end of it."""
    with tempfile.TemporaryDirectory() as folder:
        train(replace(config, train=replace(config.train, out=folder)))
        rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    phases: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        phases.setdefault(row["phase"], []).append((row["images"], row["seconds"]))
    return {name: (points[-1][1] - points[-2][1]) / (points[-1][0] - points[-2][0]) for name, points in phases.items()}
