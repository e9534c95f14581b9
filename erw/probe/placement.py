"""Which blocks to warm up: ERW's warm-up at ranges of blocks (its latent representation processing region; ERW, Table 5).

For each range and seed a short run: the warm-up of those blocks, then the whole model without alignment, so that ranges differ
in what was warmed up and in nothing else. Beside them the same whole phase without a warm-up. Measured on held-out images:
after the warm-up its alignment loss and CKNNA of the range's last block at t = 0, after the whole phase the diffusion loss;
and the run's own evaluation, where its settings name one.
"""

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from erw.align import Erw, Plain
from erw.build import build_step
from erw.checkpoint import found, read_tensors
from erw.config import TrainConfig
from erw.engine.config import EngineConfig
from erw.errors import UserError
from erw.probe.images import PROBE_SEED, ImageSource, Split, read_images
from erw.probe.network import hidden_states, load_network
from erw.probe.similarity import cknna, unit_rows
from erw.types import Phase, Targets

NO_WARM_UP = "none"
_DRAWS = 8  # of noise, t and label drop for each held-out image
_BATCH = 250
MEASURES = {
    "align": "alignment loss after the warm-up",
    "cknna": "CKNNA of its last block, t = 0",
    "diffusion": "diffusion loss after the whole phase",
    "frechet": "Frechet distance",
}


@dataclass(frozen=True, kw_only=True)
class PlacementConfig:
    """Ranges of ``blocks`` blocks at every first block; images of the two phases, whole batches (0: 100 and 200 of them)."""

    blocks: int = 2
    images: int = 0
    full_images: int = 0
    seeds: tuple[int, ...] = (0,)
    teacher: str = ""
    count: int = 10_000


def plan(config: TrainConfig, wish: PlacementConfig, out: Path) -> dict[str, list[TrainConfig]]:
    """The runs of each range ("1-2", ...) and of no warm-up, one a seed, below ``out``.

    Raises `UserError` for settings without ERW's warm-up, ranges that do not fit, and images that are no multiple of the batch.
    """
    if not isinstance(config.method, Erw):
        raise UserError(f"--placement is about ERW's warm-up, this is method {config.method.name}: name a preset or run of ERW")
    depth, batch = config.model.depth, config.train.batch
    if not 1 <= wish.blocks <= depth:
        raise UserError(f"--placement-blocks {wish.blocks} does not fit the model: it has {depth} blocks")
    if not wish.seeds or len(set(wish.seeds)) < len(wish.seeds) or min(wish.seeds) < 0:
        raise UserError("--placement-seeds must be different numbers, none negative")
    for option, images in (("--placement-images", wish.images), ("--placement-full-images", wish.full_images)):
        if images < 0 or images % batch:
            raise UserError(f"{option} {images} must be a multiple of the batch, {batch}")
    warm, full = wish.images or 100 * batch, wish.full_images or 200 * batch
    if wish.teacher:
        config = replace(config, teacher=replace(config.teacher, name=wish.teacher))
    methods = {f"{first}-{first + wish.blocks - 1}": _ranged(config.method, first, first + wish.blocks - 1, depth, warm)
               for first in range(1, depth - wish.blocks + 2)}  # fmt: skip
    plans = {name: [_run(config, method, warm + full, seed, out / f"blocks-{name}-seed-{seed}") for seed in wish.seeds]
             for name, method in methods.items()}  # fmt: skip
    return plans | {NO_WARM_UP: [_run(config, Plain(), full, seed, out / f"no-warm-up-seed-{seed}") for seed in wish.seeds]}


def _ranged(method: Erw, first: int, last: int, depth: int, warm: int) -> Erw:
    return replace(method, first=first, depth=last, projection_depth=depth, warmup_images=warm, coefficient=0.0)


def _run(config: TrainConfig, method, images: int, seed: int, out: Path) -> TrainConfig:
    train = replace(config.train, images=images, seed=seed, out=str(out), resume="auto", save_every=0, keep=2,
                    init_from="none", init_convention="none", tensorboard=False, wandb="none", profile=0,
                    log_every=min(config.train.log_every, images))  # fmt: skip
    return replace(config, method=method, train=train, eval=replace(config.eval, every=0))


def placement(config: TrainConfig, wish: PlacementConfig, out: Path, train: Callable[[TrainConfig], None],
              device: torch.device) -> dict[str, Any]:  # fmt: skip
    """Train what is not there yet below ``out`` with ``train`` (`train_ds.train`), measure it, and return the record."""
    plans = plan(config, wish, out)
    settings = next(iter(plans.values()))[0]
    if len(settings.active_teacher.names) != 1:
        raise UserError(f"--placement compares with one teacher, not '{settings.teacher.name}': name it with --teacher")
    for runs in plans.values():
        for run in runs:
            run.check()
    name = settings.teacher.name
    images = read_images(settings, ImageSource(teacher=name, count=wish.count, tokens=True), device)
    rows = []
    for place, runs in plans.items():
        for run in runs:
            train(run)
            rows.append({"blocks": place, "seed": run.train.seed, **_measured(run, images.held_out, device)})
    warm = settings.method.warmup_images
    return {
        "what": "placement",
        "teacher": name,
        "held_out_images": len(images.held_out),
        "held_out": images.note,
        "warmup_images": warm,
        "full_images": settings.train.images - warm,
        "seeds": list(wish.seeds),
        "rows": rows,
    }


def _measured(run: TrainConfig, images: Split, device: torch.device) -> dict[str, float]:
    folder = Path(run.train.out)
    checkpoints = found(folder / "checkpoints")
    last = run.method.phase(run.train.images - 1)
    result = {"diffusion": _loss(run, checkpoints[-1], replace(last, coefficient=0.0, taps=()), images, device, _DRAWS)}
    if isinstance(run.method, Erw):
        first = run.method.phase(0)
        result["align"] = _loss(run, checkpoints[0], first, images, device, 1)
        states = hidden_states(load_network(checkpoints[0], device), images, 0.0, (first.depth,))[first.depth]
        result["cknna"] = cknna(unit_rows(states), unit_rows(images.teacher.mean(dim=1).to(device)))
    evaluations = folder / "evals.jsonl"
    if evaluations.exists():
        result["frechet"] = json.loads(evaluations.read_text(encoding="utf-8").splitlines()[-1])["frechet"]
    return result


@torch.no_grad()
def _loss(run: TrainConfig, checkpoint: Path, phase: Phase, images: Split, device: torch.device, draws: int) -> float:
    """The training loss of ``phase`` on held-out images with the EMA, over ``draws`` draws of noise, t and label drop."""
    step = build_step(replace(run, engine=EngineConfig()), phase, read_tensors(checkpoint, "ema")).eval().to(device)
    total = 0.0
    for draw in range(draws):
        for start in range(0, len(images), _BATCH):
            rows = slice(start, start + _BATCH)
            latents, labels = images.latents[rows].to(device), images.labels[rows].to(device)
            index = images.index[rows].to(device) + draw * (1 << 32)
            inputs = run.objective.draw(phase, PROBE_SEED, latents, labels, index, run.model.num_classes)
            target = Targets((images.teacher[rows].to(device),)) if phase.aligns else None
            total += float(step(inputs.x, inputs.t, inputs.y, inputs.target, target)["loss"]) * len(labels)
    return total / (draws * len(images))


def summary(record: dict[str, Any]) -> dict[str, dict[str, tuple[float, float | None]]]:
    """(mean, standard deviation over seeds or None for one) of each measure, by range and measure."""
    found: dict[str, dict[str, tuple[float, float | None]]] = {}
    for place in dict.fromkeys(row["blocks"] for row in record["rows"]):
        here = [row for row in record["rows"] if row["blocks"] == place]
        values = {name: [row[name] for row in here if name in row] for name in MEASURES}
        found[place] = {name: (statistics.fmean(v), statistics.stdev(v) if len(v) > 1 else None)
                        for name, v in values.items() if v}  # fmt: skip
    return found
