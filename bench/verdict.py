"""SiT, REPA and ERW on the digits over several seeds, at equal training FLOPs: ``python -m erw.bench.verdict``.

REPA and ERW each align with the self-supervised teacher and, all else the same, with the supervised one. Seeds take turns, and
each begins with another variant, so that a machine that slows down favours none. Writes bench/results/verdict-digits.json,
anew after every run, and at the end docs/pictures/verdict.png. Killed and started again, it goes on.
"""

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import erw  # noqa: F401
from erw.bench import _verdict, _verdict_picture
from erw.bench.convergence import NAMES, environment, read_run, teacher_training
from erw.config import TrainConfig
from erw.errors import UserError, exits_cleanly
from erw.plan import Costs, images_for_budget, phases
from erw.presets import preset
from erw.settings import nearest, to_dict
from train_ds import stop_ranks, train

RECORD, PICTURE = Path("bench/results/verdict-digits.json"), Path("docs/pictures/verdict.png")
# Evenly spaced; what is read between two of them errs with the square of their distance.
EVALUATIONS = 5
# The preset of each variant, and the teacher that takes the place of the preset's own.
VARIANTS: dict[str, tuple[str, str | None]] = {
    "sit": ("digits-sit", None),
    "repa": ("digits-repa", None),
    "erw": ("digits-erw", None),
    "repa-supervised": ("digits-repa", "digits-supervised"),
    "erw-supervised": ("digits-erw", "digits-supervised"),
}
_PASSING = ("date", "commit", "dirty")


def plan(variants: list[str], scale: float = 1.0) -> dict[str, TrainConfig]:
    """The settings of each variant at ``scale`` times the presets' budget, all evaluated at the same images.

    ``scale`` cuts the judged samples down as well, to no fewer than 20. Raises `UserError` for an unknown variant, one that is
    named twice, and for a scale outside (0, 1].
    """
    for name in variants:
        if name not in VARIANTS:
            raise UserError(f"--variants: '{name}' is not known; {nearest(name, VARIANTS)}")
    if len(set(variants)) < len(variants):
        raise UserError(f"--variants names one twice: {' '.join(variants)}")
    if not 0 < scale <= 1:
        raise UserError(f"--images-scale must be above 0 and at most 1, not {scale:g}")
    configs = {name: _scaled(_settings(name), scale) for name in variants}
    # The shortest run's last image is at, or just short of, an evaluation of all others.
    steps = min(config.train.images // config.train.batch for config in configs.values())
    return {name: replace(config, eval=replace(config.eval, every=-(-steps // EVALUATIONS) * config.train.batch))
            for name, config in configs.items()}  # fmt: skip


def _settings(variant: str) -> TrainConfig:
    base, teacher = VARIANTS[variant]
    config = preset(base)
    # By name, as a run's own settings have it: a figure is of one set of operations.
    config = replace(config, engine=replace(config.engine, ops="reference"))
    return replace(config, teacher=replace(config.teacher, name=teacher)) if teacher else config


def _scaled(config: TrainConfig, scale: float) -> TrainConfig:
    """``config`` at a share of its FLOPs; the warm-up keeps its share of them."""
    if scale == 1:
        return config
    batch, costs = config.train.batch, Costs(config)
    budget = scale * sum(costs.per_image(phase) * images for phase, images in phases(config))
    warmup = getattr(config.method, "warmup_images", 0)
    if warmup:
        warmup = max(1, round(scale * warmup / batch)) * batch
        config = replace(config, method=replace(config.method, warmup_images=warmup))
    images = max(warmup + batch, images_for_budget(config, budget))
    count = max(20, round(scale * config.eval.count))
    return replace(config, train=replace(config.train, images=images), eval=replace(config.eval, count=count))


def schedule(variants: list[str], seeds: list[int]) -> list[tuple[str, int]]:
    """(variant, seed) in the order of training: seed by seed, each beginning one variant later than the one before."""
    turns = [index % len(variants) for index in range(len(seeds))]
    return [(name, seed) for turn, seed in zip(turns, seeds, strict=True) for name in variants[turn:] + variants[:turn]]


class Verdict:
    """The runs below ``out`` and their record. Raises `UserError` where ``out`` holds runs of other settings or machines."""

    def __init__(self, out: Path, record: Path, configs: dict[str, TrainConfig], seeds: list[int], scale: float):
        self.out, self.path, self.configs, self.seeds, self.scale = out, record, configs, seeds, scale
        self.environment = environment()
        self.order = schedule(list(configs), seeds)
        for name, seed in self.order:
            self._check(name, seed)

    def folder(self, name: str, seed: int) -> Path:
        """OUT/VARIANT-SEED."""
        return self.out / f"{name}-{seed}"

    def finished(self, name: str, seed: int) -> bool:
        """Whether the run is at its end: the accounts are the last thing that one writes."""
        return (self.folder(name, seed) / "accounts.json").exists()

    def run(self) -> None:
        """Train what is not finished yet, rewriting the record after every run."""
        for number, (name, seed) in enumerate(self.order, 1):
            if not self.finished(name, seed):
                print(f"\nrun {number} of {len(self.order)}: {NAMES[name]}, seed {seed}", flush=True)
                folder = self.folder(name, seed)
                folder.mkdir(parents=True, exist_ok=True)
                _write(folder / "environment.json", self.environment)
                train(self.config(name, seed))
            _write(self.path, self.record())

    def config(self, name: str, seed: int) -> TrainConfig:
        """The settings of one run."""
        config, out = self.configs[name], str(self.folder(name, seed))
        return replace(config, train=replace(config.train, out=out, seed=seed, resume="auto", tensorboard=False))

    def record(self) -> dict[str, Any]:
        """All that is known of the finished runs; `erw.bench._verdict` reads it."""
        settings = {"seeds": self.seeds, "variants": list(self.configs), "images_scale": self.scale,
                    "batch": next(iter(self.configs.values())).train.batch, "order": self.order}  # fmt: skip
        variants = {}
        for name, config in self.configs.items():
            runs = [self._run(name, seed) for seed in self.seeds if self.finished(name, seed)]
            variants[name] = {"settings": _without(to_dict(config), "train", ("out", "seed", "resume")), "runs": runs}
        names = {name for config in self.configs.values() for name in config.active_teacher.names}
        teachers = {name: teacher_training(name) for name in sorted(names)}
        return {"settings": settings, **self.environment, "teachers": teachers, "variants": variants}

    def _run(self, name: str, seed: int) -> dict[str, Any]:
        folder = self.folder(name, seed)
        passing = {key: _read(folder / "environment.json")["versions"][key] for key in _PASSING}
        return {"seed": seed, **passing, **read_run(folder)}

    def _check(self, name: str, seed: int) -> None:
        folder = self.folder(name, seed)
        if not (folder / "config.json").exists():
            return
        if not (folder / "environment.json").exists():
            raise UserError(f"--out {self.out}: {folder.name} is no run of a verdict: name another folder")
        # The folder may have been moved.
        now = json.loads(json.dumps(to_dict(self.config(name, seed))))
        if _without(_read(folder / "config.json"), "train", ("out",)) != _without(now, "train", ("out",)):
            raise UserError(f"--out {self.out}: {folder.name} was run with other settings: name another folder")
        before = _read(folder / "environment.json")
        if _without(before, "versions", _PASSING) != _without(self.environment, "versions", _PASSING):
            raise UserError(
                f"--out {self.out}: {folder.name} was run on another machine, with other threads or versions, and seconds would"
                " not compare: name another folder"
            )


def _without(entry: dict[str, Any], section: str, keys: tuple[str, ...]) -> dict[str, Any]:
    return {**entry, section: {key: value for key, value in entry[section].items() if key not in keys}}


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def _write(file: Path, content: dict[str, Any]) -> None:
    """Replace the file, whole or not at all."""
    scratch = file.with_suffix(".json.tmp")
    scratch.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(scratch, file)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/verdict"), help="folder for the runs")
    parser.add_argument("--record", type=Path, default=RECORD, help="another one gets its picture beside it")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), metavar="NAME", help=f"among {', '.join(VARIANTS)}")
    parser.add_argument("--images-scale", type=float, default=1.0, help="share of the budget and of the judged samples")
    options = parser.parse_args(arguments)
    if len(set(options.seeds)) < max(2, len(options.seeds)) or min(options.seeds) < 0:
        raise UserError("--seeds must be two or more different numbers, none negative: intervals are taken over them")
    whole = options.images_scale == 1 and set(options.variants) == set(VARIANTS)
    if not whole and options.record == RECORD:
        raise UserError(f"{RECORD} is for all variants at the whole budget: name another file with --record")
    if not options.record.parent.is_dir():
        raise UserError(f"--record {options.record}: there is no folder {options.record.parent}: make it, or run from the root")
    return options


@exits_cleanly
def main(arguments: list[str] | None = None) -> None:
    """Train, write record and picture, and print a sentence for each pair of variants."""
    options = _options(arguments)
    configs = plan(options.variants, options.images_scale)
    verdict = Verdict(options.out, options.record, configs, options.seeds, options.images_scale)
    verdict.run()
    stop_ranks()
    record = verdict.record()
    picture = PICTURE if options.record == RECORD else options.record.with_suffix(".png")
    _verdict_picture.draw(record, picture)
    print("\nFrechet distance to held-out digits, lower is better:")
    # The seconds of a few steps say nothing.
    for line in _verdict.lines(record, ("seconds", "images") if options.images_scale == 1 else ("images",)):
        print(line)
    print(f"{options.record}\n{picture}")


if __name__ == "__main__":
    main()
