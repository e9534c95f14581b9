"""What a study is: a TOML file in bench/studies, strict, with one line for every mistake."""

import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from erw.errors import UserError
from erw.presets import PRESETS, preset
from erw.settings import from_dict, nearest

FOLDER = Path(__file__).resolve().parents[1] / "studies"
Settings = dict[str, Any]  # dotted names as on train_ds.py's command line


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One method with its settings: a preset, what it changes, and ERW's warm-up as a share of the budget."""

    label: str
    preset: str
    set: Settings = field(default_factory=dict)
    warmup_share: float = 0.0
    published: str = ""  # what a paper reports for it


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What every variant may spend: ``amount`` of ``unit``, or as much as the preset of the variant ``like`` does.

    flops, images: of training (`erw.flops`). seconds: of training, turned into images by a pilot of every variant on this
    machine. preset: each variant as its preset is; for tables of papers, which are no comparison at equal cost.
    """

    unit: Literal["flops", "images", "seconds", "preset"]
    amount: float = 0.0
    like: str = ""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Settings that a sweep tries, in the place of the variant's own."""

    set: Settings = field(default_factory=dict)
    warmup_share: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Trials by variant, as many for each: all on ``seeds``, the best ``go_on`` on ``more_seeds`` too."""

    seeds: tuple[int, ...]
    more_seeds: tuple[int, ...]
    go_on: int
    trials: dict[str, list[Trial]]


@dataclass(frozen=True, kw_only=True)
class Study:
    """Variants x seeds at a budget, how they are judged, and what is compared with what."""

    name: str
    title: str
    about: str
    seeds: tuple[int, ...]
    evaluations: int  # of the variant with the fewest images; at the same images for all
    quality: str  # a figure of the evaluator, lower is better; curves, targets and choices go by it
    also: tuple[str, ...] = ()
    judged_by: str = ""  # what the evaluator is, in words
    budget: Budget
    set: Settings = field(default_factory=dict)  # for every variant, before its own
    variants: dict[str, Variant]
    compare: list[list[str]] = field(default_factory=list)  # pairs, each: ours, theirs
    reach: list[list[str]] = field(default_factory=list)  # pairs: who is to get how far as whom
    sweep: Sweep | None = None
    cautions: list[str] = field(default_factory=list)

    @property
    def figures(self) -> tuple[str, ...]:
        """What is read off every evaluation."""
        return (self.quality, *self.also)

    @property
    def labels(self) -> dict[str, str]:
        """Names for people."""
        return {name: variant.label for name, variant in self.variants.items()}

    def on(self, data: Path | None = None, teacher: str | None = None, judge: Path | None = None) -> "Study":
        """The same study on the dataset in ``data``, aligned with ``teacher``, judged by the statistics in ``judge``."""
        given = {"data.path": data, "eval.reference": judge}
        variants = self.variants
        if teacher is not None:
            variants = {name: _aligned(variant, teacher) for name, variant in variants.items()}
        return replace(self, set=self.set | {k: str(v) for k, v in given.items() if v is not None}, variants=variants)


def _aligned(variant: Variant, teacher: str) -> Variant:
    """``variant`` with ``teacher``, where its method has a use for one."""
    if not preset(variant.preset).method.needs_teacher:
        return variant
    return replace(variant, set=variant.set | {"teacher.name": teacher})


def names() -> list[str]:
    """The studies that come with the project."""
    return sorted(file.stem for file in FOLDER.glob("*.toml"))


def read_study(name: str) -> Study:
    """The study called ``name``, or the one in the file ``name``. Raises `UserError` for one that cannot be."""
    file = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not file.is_file():
        raise UserError(f"study '{name}' is not known; {nearest(name, names())}, or a .toml file")
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not TOML: {error}") from None
    try:
        study = from_dict(Study, {"name": file.stem} | data)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    _check(study, file)
    return study


def _check(study: Study, file: Path) -> None:
    """Raise `UserError` where parts of ``study`` contradict each other."""
    if len(set(study.seeds)) < max(2, len(study.seeds)) or min(study.seeds) < 0:
        raise UserError(f"{file}: seeds must be two or more different numbers, none negative: intervals are taken over them")
    for name, variant in study.variants.items():
        if variant.preset not in PRESETS:
            raise UserError(
                f"{file}: variant {name}: preset '{variant.preset}' is not known; {nearest(variant.preset, PRESETS)}"
            )
        if not 0 <= variant.warmup_share < 1:
            raise UserError(f"{file}: variant {name}: warmup_share must be from 0 to below 1, not {variant.warmup_share:g}")
    named = [*(name for pair in study.compare + study.reach for name in pair), *(study.sweep.trials if study.sweep else ())]
    for name in [*named, *filter(None, [study.budget.like])]:
        if name not in study.variants:
            raise UserError(f"{file}: '{name}' is no variant; {nearest(name, study.variants)}")
    if any(len(pair) != 2 for pair in study.compare + study.reach):
        raise UserError(f"{file}: compare and reach take pairs of variants")
    if study.budget.unit != "preset" and bool(study.budget.like) == bool(study.budget.amount):
        raise UserError(f"{file}: a budget has an amount or is like a variant's, one of the two")
    if study.sweep:
        _check_sweep(study, file)


def _check_sweep(study: Study, file: Path) -> None:
    sweep = study.sweep
    if len({len(trials) for trials in sweep.trials.values()}) > 1:
        sizes = ", ".join(f"{name} {len(trials)}" for name, trials in sweep.trials.items())
        raise UserError(f"{file}: every variant is swept equally, these are not: {sizes} trials")
    if set(study.seeds) & {*sweep.seeds, *sweep.more_seeds}:
        raise UserError(f"{file}: the sweep has seeds of the study: choose others, or the choice is part of the result")
