"""What a study would run and cost, before anything is run."""

import shlex

from erw.bench.convergence.plan import plan
from erw.bench.convergence.study import Study
from erw.bench.convergence.words import table
from erw.config import TrainConfig
from erw.plan import Costs, phases
from erw.presets import preset
from erw.settings import leaves

_OWN = ("train.out", "train.seed", "eval.every")


def text(study: Study, variants: list[str], seeds: list[int], share: float = 1.0) -> str:
    """Markdown: each variant's images and FLOPs, and its command."""
    configs = plan(study, share) if study.budget.unit != "seconds" else {}
    parts = [f"# {study.title}", f"{len(variants)} variants x {len(seeds)} seeds"]
    if not configs:
        return "\n\n".join([*parts, "A budget of seconds: a pilot on the machine decides the images when the study starts."])
    rows = [[study.labels[name], *_row(configs[name]), study.variants[name].published or "-"] for name in variants]
    parts.append(table(["variant", "images", "of them warm-up", "FLOPs", "published"], rows))
    parts += [command(study.variants[name].preset, configs[name], name, seeds[0]) for name in variants]
    return "\n\n".join(parts)


def _row(config: TrainConfig) -> list[str]:
    costs = Costs(config)
    total = sum(costs.per_image(phase) * images for phase, images in phases(config))
    warmup = sum(images for phase, images in phases(config) if phase.depth)
    return [f"{config.train.images:,}", f"{warmup:,}", f"{total:.3g}"]


def command(name: str, config: TrainConfig, variant: str, seed: int) -> str:
    """The same run by hand."""
    mine, base = ({key: value for key, _, _, value in leaves(c)} for c in (config, preset(name)))
    words = ["python", "train_ds.py", name, "--train.out", f"runs/{variant}-{seed}", "--train.seed", str(seed)]
    for key, value in mine.items():
        if value != base.get(key) and key not in _OWN:
            shown = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words += [f"--{key}", shown.lower() if isinstance(value, bool) else shown]
    return shlex.join(words)
