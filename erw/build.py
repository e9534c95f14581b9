"""From settings and a phase to the module that trains in it."""

from dataclasses import replace

import torch
from torch import Tensor

from erw import ops
from erw.config import TrainConfig
from erw.data import Dataset, open_dataset
from erw.engine.config import read_ds_config, stage_of
from erw.errors import UserError
from erw.latents import LatentConfig, Pixels, VaeLatents, latent_space, settled
from erw.models.embed import rope_table
from erw.models.sit import SiT, SiTConfig
from erw.step import TrainStep, public_name
from erw.types import Phase


def build_step(config: TrainConfig, phase: Phase, carried: dict[str, Tensor] | None = None,
               initial: dict[str, Tensor] | None = None) -> TrainStep:  # fmt: skip
    """The fp32 `TrainStep` of ``phase`` on the CPU, initialised from the seed; over that are laid what the phase has of
    the ``initial`` weights (see `erw.init_from`), then all ``carried`` ones, both by public name. Backbone and heads have
    streams of their own, so a method's heads do not change the backbone's start.
    """
    opset = ops.resolve(config.engine.ops, config.engine.attention)
    if stage_of(read_ds_config(config.engine.ds_config)) == 3:
        opset = replace(opset, modulations=ops.REFERENCE.modulations)  # weights are there only while their module runs
    seed = config.train.seed
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SiT(config.model, opset)
        torch.manual_seed(seed + (1 << 32))
        heads = config.method.build_heads(config.model, config.teacher_specs)
    if phase.depth is not None:
        model.keep_span(phase.first, phase.depth)
    model.recompute = config.engine.recompute
    step = TrainStep(model, heads, config.method, config.objective, phase, opset)
    if initial:
        here = {public_name(name) for name, _ in step.named_parameters()}
        carry_over(step, {name: value for name, value in initial.items() if name in here})
    if carried is not None:
        carry_over(step, carried)
    return step.train()


@torch.no_grad()
def carry_over(step: TrainStep, weights: dict[str, Tensor]) -> None:
    """Overwrite parameters of ``step`` by public name. Every given weight must have its place; shapes must match."""
    places = {public_name(name): p for name, p in (*step.named_parameters(), *step.named_buffers())}
    for name, value in weights.items():
        if name not in places or places[name].shape != value.shape:
            have = tuple(places[name].shape) if name in places else "no such weight"
            raise UserError(f"weight {name} {tuple(value.shape)} does not fit the model ({have})")
        places[name].copy_(value)


def public_buffers(step: TrainStep) -> dict[str, Tensor]:
    """Buffers that public checkpoints hold: the position table."""
    kept = step.state_dict().keys()
    return {public_name(n): b.detach().float().cpu() for n, b in step.named_buffers() if n in kept}


def build_sampler_model(config: SiTConfig, weights: dict[str, Tensor], device: torch.device,
                        phase: Phase | None = None) -> SiT:  # fmt: skip
    """The backbone alone in eval mode, fp32, from weights by public name; train-only heads are left out.

    ``phase``: with only the blocks that exist in it. Weights that are fp32 and on ``device`` already become the model's own:
    nothing is in memory twice.
    """
    with torch.device("meta"):  # no initial weights are drawn
        model = SiT(config)
    if phase is not None and phase.depth is not None:
        model.keep_span(phase.first, phase.depth)
    backbone = {n: v.to(device, torch.float32) for n, v in weights.items() if not n.startswith("projectors.")}
    model.load_state_dict(backbone, strict=True, assign=True)
    if config.rope:
        model.rope = rope_table(config.grid, config.width // config.num_heads)
    return model.eval().requires_grad_(False).to(device)


def open_data(config: TrainConfig) -> tuple[TrainConfig, Dataset]:
    """(settings, checked; the dataset that they name). With ``--data.fit`` the dataset decides what only it can know.

    Raises `UserError` for settings that contradict each other, and for a dataset that is missing or malformed.
    """
    if not config.data.fit:
        config.check()
        return config, open_dataset(config.data)
    dataset = open_dataset(config.data)
    config = taken_from(config, dataset)
    config.check()
    return config, dataset


def taken_from(config: TrainConfig, dataset: Dataset) -> TrainConfig:
    """``config`` with the dataset's classes, latents and autoencoder, and with its teachers where the method wants some and
    none is named."""
    stored, method = dataset.stored, config.method
    if stored is None:
        raise UserError(
            f"{config.data.path} does not say what its latents are: prepare it with erw prepare, or give --data.fit false,"
            " --latents.kind and the --model options"
        )
    sizes = {"num_classes": dataset.num_classes, "in_channels": stored.channels, "input_size": dataset.size}
    given = config.latents.vae != LatentConfig().vae
    latents = replace(config.latents, kind=stored.kind, vae=config.latents.vae if given else stored.vae or config.latents.vae)
    teacher = config.teacher
    if method.needs_teacher and not teacher.names:
        if not dataset.cached:
            raise UserError(
                f"method {method.name} needs a teacher and {config.data.path} holds no features: prepare it with --teachers, or"
                " train folder-sit"
            )
        teacher = replace(teacher, name=",".join(dataset.cached))
    return replace(config, model=replace(config.model, **sizes), latents=latents, teacher=teacher)


def fit_to_data(config: TrainConfig, dataset: Dataset) -> tuple[TrainConfig, Pixels | VaeLatents]:
    """``config`` with what its latents leave to the dataset, and its space. Raises `UserError` where they do not fit."""
    config = replace(config, latents=settled(config.latents, dataset.stored))
    space = latent_space(config.latents)
    _check_data(config, dataset, space)
    return config, space


def _check_data(config: TrainConfig, dataset: Dataset, space: Pixels | VaeLatents) -> None:
    """Raise `UserError` where the model does not fit the data."""
    model = config.model
    found = {"in_channels": space.channels(dataset.channels), "input_size": dataset.size}
    wrong = {name: value for name, value in found.items() if getattr(model, name) != value}
    if wrong:
        ours = " and ".join(f"--model.{name} is {getattr(model, name)}" for name in wrong)
        theirs = " and ".join(str(value) for value in wrong.values())
        raise UserError(f"{ours}, the data has {theirs}: set {' '.join(f'--model.{k} {v}' for k, v in wrong.items())}")
    if dataset.num_classes > model.num_classes:
        raise UserError(
            f"labels run to {dataset.num_classes - 1}, --model.num_classes is {model.num_classes}: set it to"
            f" {dataset.num_classes}"
        )
