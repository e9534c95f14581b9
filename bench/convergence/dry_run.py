"""What a study would run and cost, before anything is run."""

import shlex
from dataclasses import dataclass

from erw.bench.convergence.plan import plan
from erw.bench.convergence.study import Study, Variant
from erw.bench.convergence.words import table
from erw.config import TrainConfig
from erw.devices import GB
from erw.evaluate.anchors import anchors_for, short
from erw.plan import Costs, phases, teacher_words
from erw.plan.forecast import Forecast, Forecaster
from erw.plan.network import Network
from erw.plan.rates import Rates, rates_of
from erw.plan.report import disk_of
from erw.presets import preset
from erw.settings import leaves

# What the launcher or the study itself sets.
_OWN = ("train.out", "train.seed", "eval.every")
_IMAGENET = 1_281_167
_NODE_GB_PER_S = 50.0  # a GPU, between machines, as `erw plan` assumes
# REPA's own speed, images/s a GPU: SiT-XL/2 on eight H100 at batch 256, its teacher online (REPA, appendix).
_PUBLISHED_SPEED = {"in256-repa-xl2": 173.0}


@dataclass(frozen=True)
class Machine:
    """``gpus`` of the kind ``gpu``, as `erw plan` calls it."""

    gpu: str
    gpus: int

    @property
    def rates(self) -> Rates:
        """What is measured or known of it."""
        return rates_of(self.gpu)

    @property
    def network(self) -> Network:
        """One machine, or several."""
        rates = self.rates
        return Network(self.gpus, rates.per_node, rates.link, _NODE_GB_PER_S * rates.per_node)


def text(study: Study, variants: list[str], seeds: list[int], share: float = 1.0, machine: Machine | None = None) -> str:
    """Markdown: each variant's images and FLOPs and its command; on ``machine`` its GPU-hours and disk as well."""
    parts = [f"# {study.title}", f"{len(variants)} variants x {len(seeds)} seeds"]
    if study.budget.unit == "seconds":
        hours = study.budget.amount * share * len(variants) * len(seeds) / 3600
        said = f"{hours:.2g} hours of training in all, evaluations apart; a pilot decides the images when the study starts."
        return "\n\n".join([*parts, said])
    configs = {name: config for name, config in plan(study, share).items() if name in variants}
    ranks = machine.gpus if machine else 1
    heads = ["variant", "images", "of them warm-up", "FLOPs", "published FID"]
    rows = [
        [study.labels[name], *_amounts(configs[name], ranks), expected(study.variants[name], configs[name])]
        for name in variants
    ]
    if machine:
        heads += ["GPU-hours, a seed", "published code's", "features and latents", "checkpoints"]
        for row, name in zip(rows, variants, strict=True):
            row += _costs(study.variants[name].preset, configs[name], machine)
    parts.append(table(heads, rows))
    parts += _teachers(study, {name: configs[name] for name in variants}, ranks)
    if machine:
        parts.append(_how(machine))
    for name in variants:
        parts.append("\n".join(["```", *commands(study, name, configs[name], seeds[0], machine), "```"]))
    return "\n\n".join(parts)


def _teachers(study: Study, configs: dict[str, TrainConfig], ranks: int) -> list[str]:
    """What teachers cost, each line once with the variants that it is true of."""
    found: dict[str, list[str]] = {}
    for name, config in configs.items():
        if words := teacher_words(config, ranks):
            found.setdefault(words, []).append(study.labels[name])
    return [f"{words} ({', '.join(labels)})" for words, labels in found.items()]


def _amounts(config: TrainConfig, ranks: int) -> list[str]:
    costs = Costs(config, ranks=ranks)
    total = sum(costs.per_image(phase) * images for phase, images in phases(config))
    warmup = sum(images for phase, images in phases(config) if phase.depth)
    return [f"{config.train.images:,}", f"{warmup:,}", f"{total:.3g}"]


def expected(variant: Variant, config: TrainConfig) -> str:
    """What papers report of this model and method on the way to the last image; their own steps, without guidance."""
    found = [a for a in anchors_for(config) if a.method == config.method.name and a.metric == "fid"]
    passed = [
        f"{a.value:g} at {short(a.steps)}" for a in sorted(found, key=lambda a: a.images) if a.images <= config.train.images
    ]
    return ", ".join(passed) or variant.published or "-"


def _forecast(config: TrainConfig, machine: Machine) -> Forecast:
    return Forecaster(config, machine.rates).at(machine.network)


def _costs(name: str, config: TrainConfig, machine: Machine) -> list[str]:
    """GPU-hours, the published code's at its published speed where it has one, bytes."""
    forecast = _forecast(config, machine)
    disk = disk_of(forecast, _IMAGENET)
    speed = _PUBLISHED_SPEED.get(name)
    theirs = f"{config.train.images / speed / 3600:,.0f} (H100)" if speed else "-"
    kept = config.train.keep * disk.checkpoint
    stored = disk.latents + disk.pixels + sum(disk.features.values())
    return [f"{forecast.gpu_hours:,.0f}", theirs, f"{stored / GB:,.0f} GB", f"{kept / GB:,.0f} GB"]


def _how(machine: Machine) -> str:
    return (
        f"GPU-hours on {machine.gpus} {machine.gpu} are `erw plan`'s ({machine.rates.source}): modelled unless it says"
        " measured, evaluation apart. The published code's: its images at the speed that REPA reports (173 images/s a GPU,"
        " SiT-XL/2 on eight H100, teacher online). Disk: fp16 moments and bf16 features, or the pixels for a teacher"
        " that runs online, of 1,281,167 images, once for all rows."
    )


def commands(study: Study, name: str, config: TrainConfig, seed: int, machine: Machine | None = None) -> list[str]:
    """The same run by hand; for tables of papers, its FID-50K too."""
    variant, run = study.variants[name], f"runs/{name}-{seed}"
    launcher = "torchrun --nproc-per-node 8" if machine and machine.gpus > 1 else "python"
    mine, base = ({key: value for key, _, _, value in leaves(c)} for c in (config, preset(variant.preset)))
    words = [*launcher.split(), "train_ds.py", variant.preset, "--train.out", run, "--train.seed", str(seed)]
    for key, value in mine.items():
        if value != base.get(key) and key not in _OWN:
            shown = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words += [f"--{key}", shown.lower() if isinstance(value, bool) else shown]
    lines = [shlex.join(words)]
    if study.budget.unit == "preset":
        sample = "torchrun --nproc-per-node 8 -m erw.cli sample" if machine and machine.gpus > 1 else "erw sample"
        steps = "--sampler ddpm --steps 250" if config.objective.name == "ddpm" else "--sampler sde --steps 250"
        lines.append(f"{sample} {run} --count 50000 {steps} --out {run}/samples.npz")
        lines.append(f"erw eval {run}/samples.npz --reference VIRTUAL_imagenet256_labeled.npz --weights INCEPTION.pth")
    return lines
