"""The settings of every variant of a study: its preset, its changes, as many images as the budget buys, common evaluations."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from erw.align import Erw
from erw.bench.convergence.study import Settings, Study, Trial, Variant
from erw.config import TrainConfig
from erw.data import open_dataset
from erw.data.store import is_store
from erw.errors import UserError
from erw.flops import cached_share
from erw.plan import Costs, phases
from erw.presets import preset
from erw.settings import override
from erw.types import Phase

# What one image costs in a phase, in the budget's unit.
Cost = Callable[[TrainConfig, Phase], float]
_FEWEST_SAMPLES = 20
_ROUNDS = 8  # the share of the features' cost that an image bears depends on how many images there are


def changed(config: TrainConfig, settings: Settings) -> TrainConfig:
    """``config`` with dotted names replaced, as the command line would."""
    words = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in settings.items()}
    return override(config, [word for name, value in words.items() for word in (f"--{name}", value)])


def settings_of(study: Study, variant: Variant, trial: Trial | None = None) -> TrainConfig:
    """The variant before its budget; with ``trial``'s settings in the place of its own."""
    chosen = variant.set if trial is None else trial.set
    return changed(preset(variant.preset), study.set | chosen)


def costs(study: Study, rates: dict[str, dict[str, float]] | None = None) -> Cost:
    """What an image costs in the study's unit; ``rates`` are a pilot's seconds an image by variant's preset and phase."""
    match study.budget.unit:
        case "images":
            return lambda config, phase: 1.0
        case "seconds":
            if rates is None:
                raise UserError(
                    f"study {study.name}: a budget of seconds needs the pilot's rates of this machine: run the study"
                )
            return lambda config, phase: rates[config.train.out][phase.name]
        case _:
            return lambda config, phase: Costs(config).per_image(phase)


def spent(config: TrainConfig, cost: Cost) -> float:
    """What the whole of ``config`` costs."""
    return sum(cost(config, phase) * images for phase, images in phases(config))


def fitted(config: TrainConfig, amount: float, warmup_share: float, cost: Cost) -> TrainConfig:
    """``config`` with the images, whole batches, that come nearest to ``amount``; ERW's warm-up spends its share of it.

    Raises `UserError` where not a step of each phase fits in.
    """
    batch, method, warmup = config.train.batch, config.method, 0
    if isinstance(method, Erw):
        first = cost(config, method.phase(0))
        warmup = round(warmup_share * amount / first / batch) * batch
        if warmup < batch:
            raise UserError(
                f"a warm-up of {warmup_share:g} of the budget is less than a step: raise warmup_share or the budget"
            )
        method = replace(method, warmup_images=warmup)
        amount -= warmup * first
    images = round(amount / cost(config, method.phase(warmup)) / batch) * batch
    if images < batch:
        raise UserError("the budget is less than a step of the whole model: raise it")
    return replace(config, method=method, train=replace(config.train, images=warmup + images))


def with_features(config: TrainConfig, amount: float, warmup_share: float, cost: Cost) -> TrainConfig:
    """`fitted` in FLOPs, where the dataset is there and holds the teacher's features: a run pays for them as `erw.flops` says,
    for each image of the dataset once, as far as it gets to see them."""
    forward, rows = _features(config)
    charged, found = 1.0, config
    for _ in range(_ROUNDS if forward else 1):

        def priced(config: TrainConfig, phase: Phase, each: float = charged * forward) -> float:
            return cost(config, phase) + (each if phase.aligns else 0.0)

        found = fitted(config, amount, warmup_share, priced)
        aligned = sum(images for phase, images in phases(found) if phase.aligns)
        charged = cached_share(1, rows, aligned)
    return found


def _features(config: TrainConfig) -> tuple[int, int]:
    """Forward FLOPs of an image's cached features, and of how many images there are; (0, 0) where none are known. The digits'
    own teachers, a hundredth of a run, are left out."""
    if config.data.name == "digits" or config.active_teacher.source != "cached" or not Path(config.data.path).is_dir():
        return 0, 0
    if config.data.name == "store" and not is_store(config.data.path):
        return 0, 0
    dataset = open_dataset(config.data)
    return sum(dataset.cached[name].flops for name in config.active_teacher.names if name in dataset.cached), len(dataset)


def amount(study: Study, cost: Cost, share: float = 1.0) -> float:
    """The study's budget in its unit."""
    if study.budget.like:
        return share * spent(settings_of(study, study.variants[study.budget.like]), cost)
    return share * study.budget.amount


def plan(study: Study, share: float = 1.0, rates: dict[str, dict[str, float]] | None = None) -> dict[str, TrainConfig]:
    """The settings of each variant at ``share`` of the budget, all evaluated at the same images.

    ``share`` cuts the judged samples down as well. ``train.out`` holds the variant's name. Raises `UserError` for a share
    outside (0, 1] and for a budget that buys too little.
    """
    if not 0 < share <= 1:
        raise UserError(f"--share must be above 0 and at most 1, not {share:g}")
    configs = {}
    for name, variant in study.variants.items():
        config = settings_of(study, variant)
        config = replace(config, train=replace(config.train, out=name))
        if study.budget.unit != "preset":
            cost = costs(study, rates)
            fit = with_features if study.budget.unit == "flops" else fitted
            config = fit(config, amount(study, cost, share), variant.warmup_share, cost)
        configs[name] = _sampled(config, share)
    return _evaluated(configs, study.evaluations)


def _sampled(config: TrainConfig, share: float) -> TrainConfig:
    count = max(min(_FEWEST_SAMPLES, config.eval.count), round(share * config.eval.count))
    return replace(config, eval=replace(config.eval, count=count))


def _evaluated(configs: dict[str, TrainConfig], evaluations: int) -> dict[str, TrainConfig]:
    """The shortest run's last image is at, or just short of, an evaluation of all others."""
    if len({config.train.batch for config in configs.values()}) > 1:
        return configs
    steps = min(config.train.images // config.train.batch for config in configs.values())
    every = math.ceil(steps / evaluations)
    return {name: replace(config, eval=replace(config.eval, every=every * config.train.batch))
            for name, config in configs.items()}  # fmt: skip
