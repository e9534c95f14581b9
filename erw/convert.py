"""Public .pt files: one as a run that can be sampled from and started from (``erw import --from``), and a run's EMA as one
(``erw export --to``). Our own format is in `erw.exported`."""

import json
from pathlib import Path

import torch
from torch import Tensor

from erw.align import Plain
from erw.checkpoint import Meta, found, read_tensors, save
from erw.config import RunConfig, TrainConfig
from erw.data import DataConfig
from erw.errors import UserError
from erw.files import whole
from erw.latents import LatentConfig
from erw.models.sit import SiTConfig
from erw.objectives import Objective
from erw.optim import WEIGHTS
from erw.public import convention_of, read_public, to_public
from erw.sample.load import read_run
from erw.settings import to_dict


def import_public(file: Path, convention: str, out: Path, latents: LatentConfig, num_heads: int | None = None) -> Path:
    """Write the run folder ``out`` with one checkpoint: weights and EMA, no moments, 0 images. Returns the checkpoint.

    The settings are those that sampling needs, and ``latents`` says what the model's images are. Raises `UserError` for a
    bad file (see `erw.public.read_public`) or a folder that already holds a run.
    """
    check_free(out)
    public = read_public(file, convention, num_heads)
    config = TrainConfig(
        model=public.config,
        method=Plain(),
        objective=public.objective,
        # As a run that started from the file and has not trained yet, which it is.
        train=RunConfig(out=str(out), init_from=str(file.resolve()), init_convention=convention),
        data=DataConfig(name="arrays"),
        latents=latents,
        sample=public.sample,
    )
    meta = Meta(images=0, phase="train", steps=0, config=to_dict(config), accounts={}, init_from=str(file.resolve()))
    return write_run(out, meta, public.weights)


def check_free(out: Path) -> None:
    """Raise `UserError` where the folder ``out`` cannot become a new run's."""
    if found(out / "checkpoints") or (out / "config.json").exists():
        raise UserError(f"--out {out} already holds a run: name another folder")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: name a folder")


def write_run(out: Path, meta: Meta, weights: dict[str, Tensor]) -> Path:
    """The run folder ``out`` with one checkpoint, whose weights and EMA are ``weights`` and which has no moments."""
    path = save(out / "checkpoints", meta, lambda key: dict(weights), {}, keep=1, writes=True, keys=(WEIGHTS, "ema"))
    (out / "config.json").write_text(json.dumps(meta.config, indent=1) + "\n", encoding="utf-8")
    return path


def export_public(run: Path, convention: str, out: Path) -> None:
    """Write the EMA of a run (its newest checkpoint) or of a checkpoint as the .pt file ``out``: ``{"ema": weights}``.

    Raises `UserError` where the model is none that ``convention`` can mean, or ``out`` exists.
    """
    convention_of(convention)
    if out.exists():
        raise UserError(f"--out {out} exists: name another file")
    config, _, checkpoint = read_run(run)
    _check_fits(checkpoint, config.model, config.objective, convention)
    weights = {name: value.contiguous() for name, value in to_public(read_tensors(checkpoint, "ema"), convention).items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole(out) as file:
        torch.save({"ema": weights}, file)


def _check_fits(checkpoint: Path, model: SiTConfig, objective: Objective, convention: str) -> None:
    """Raise `UserError` where a file of weights for the convention's code would mean another model there."""
    meaning = convention_of(convention)
    pairs = [
        ("objective.name", objective.name, meaning.objective.name),
        # Such a file does not say its interpolant, and their code takes it to be this one.
        ("objective.interpolant", *(getattr(o, "interpolant", None) for o in (objective, meaning.objective))),
        ("model.learn_sigma", model.learn_sigma, meaning.learn_sigma),
        ("model.rope", model.rope, False),
    ]
    for name, ours, theirs in pairs:
        if ours != theirs:
            raise UserError(f"{checkpoint} cannot go --to {convention}: it has --{name} {ours}, models there have {theirs}")
