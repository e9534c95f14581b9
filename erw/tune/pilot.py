"""The pilot of `erw tune-warmup`: ERW's warm-up alone, at several depths, as far as a share of the run's FLOPs reaches."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from erw.align import Erw
from erw.config import TrainConfig
from erw.errors import UserError
from erw.plan import Costs, phases
from erw.tune.choice import Curve, as_record, choose

_POINTS = 400  # of a curve, at most


@dataclass(frozen=True, kw_only=True)
class PilotConfig:
    """How far a pilot goes: ``share`` of the run's training FLOPs for each depth and seed. No ``depths``: `depths_of`."""

    share: float = 0.4
    depths: tuple[int, ...] = ()
    seeds: tuple[int, ...] = (1_000_000,)

    def __post_init__(self):
        if not 0 < self.share < 1:
            raise UserError(f"--share must be above 0 and below 1, not {self.share:g}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise UserError("--seeds must be different numbers, none negative")


def budget(config: TrainConfig) -> float:
    """Training FLOPs of the whole run."""
    costs = Costs(config)
    return sum(costs.per_image(phase) * images for phase, images in phases(config))


def depths_of(config: TrainConfig) -> tuple[int, ...]:
    """The preset's depth, half of it and half as much again: what the paper's Table 3 spans."""
    depth = config.method.depth
    return tuple(sorted({max(1, depth // 2), depth, min(config.method.projection_depth, depth + (depth + 1) // 2)}))


def plan(config: TrainConfig, wish: PilotConfig, out: Path) -> dict[tuple[int, int], TrainConfig]:
    """A run for each (depth, seed) below ``out``: its warm-up has the pilot's FLOPs; one step follows, in which runs end.

    Raises `UserError` for settings without ERW's warm-up and for depths that do not fit.
    """
    if not isinstance(config.method, Erw):
        raise UserError(f"tune-warmup is about ERW's warm-up, this is method {config.method.name}: name a preset of ERW")
    spend, found = wish.share * budget(config), {}
    for depth in wish.depths or depths_of(config):
        method = replace(config.method, depth=depth, projection_depth=max(depth, config.method.projection_depth))
        each = Costs(replace(config, method=method)).per_image(method.phase(0)) * config.train.batch
        steps = round(spend / each)
        if steps < 20:
            raise UserError(f"a pilot of {steps} steps at depth {depth} shows no curve: raise --share or train longer")
        method = replace(method, warmup_images=steps * config.train.batch)
        for seed in wish.seeds:
            found[depth, seed] = _run(config, method, steps, seed, out / f"depth-{depth}-seed-{seed}")
            found[depth, seed].check()
    return found


def _run(config: TrainConfig, method: Erw, steps: int, seed: int, out: Path) -> TrainConfig:
    batch = config.train.batch
    train = replace(config.train, images=method.warmup_images + batch, seed=seed, out=str(out), resume="auto", save_every=0,
                    keep=1, log_every=max(1, steps // _POINTS) * batch, tensorboard=False, wandb="none", profile=0)  # fmt: skip
    return replace(config, method=method, train=train, eval=replace(config.eval, name="none", reference="none", every=0))


def pilot(config: TrainConfig, wish: PilotConfig, out: Path, train: Callable[[TrainConfig], None]) -> dict[int, list[Curve]]:
    """Train what is not there yet below ``out`` with ``train`` (`train_ds.train`); by depth the curves of all seeds."""
    curves: dict[int, list[Curve]] = {}
    for (depth, _), run in plan(config, wish, out).items():
        train(run)
        curves.setdefault(depth, []).append(read_curve(run))
    return curves


def read_curve(run: TrainConfig) -> Curve:
    """(share of the pilot's FLOPs, alignment loss of the training batch) of a finished warm-up."""
    file = Path(run.train.out) / "metrics.jsonl"
    rows: list[dict[str, Any]] = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    warmup = run.method.warmup_images
    return [(row["images"] / warmup, row["align"]) for row in rows if row.get("phase") == "warmup" and "align" in row]


def tune(config: TrainConfig, name: str, wish: PilotConfig, out: Path, train: Callable[[TrainConfig], None]) -> dict[str, Any]:
    """The record of a whole pilot for the run ``config`` of the preset ``name``: what was chosen, and what it was read off."""
    curves = pilot(config, wish, out, train)
    choice = choose(curves)
    method = replace(config.method, depth=choice.depth, projection_depth=max(choice.depth, config.method.projection_depth))
    each = Costs(replace(config, method=method)).per_image(method.phase(0)) * config.train.batch
    images = max(1, round(choice.share * wish.share * budget(config) / each)) * config.train.batch
    return as_record(curves, choice, preset=name, warmup_images=images, projection_depth=method.projection_depth,
                     projection_raised=method.projection_depth != config.method.projection_depth, pilot_share=wish.share,
                     budget_flops=budget(config), seeds=list(wish.seeds))  # fmt: skip
