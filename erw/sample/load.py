"""The model of a run, rebuilt from a checkpoint alone."""

from pathlib import Path

import torch

from erw.build import build_sampler_model
from erw.checkpoint import Meta, locate, read_meta, read_tensors
from erw.config import TrainConfig, config_from_dict
from erw.errors import UserError
from erw.models.sit import SiT


def read_run(path: Path) -> tuple[TrainConfig, Meta, Path]:
    """(settings, description, checkpoint) of a run's folder or one checkpoint, without its weights.

    Raises `UserError` where there is none, and for one out of a warm-up, which has a part of the model only.
    """
    if not path.exists():
        raise UserError(f"'{path}' does not exist: name a run's folder or a checkpoint")
    checkpoint = locate(path)
    meta = read_meta(checkpoint)
    config = config_from_dict(meta.config)
    if config.method.phase(max(meta.images - 1, 0)).depth is not None:
        raise UserError(f"{checkpoint} lies in the warm-up: it is no whole model; take a later checkpoint")
    return config, meta, checkpoint


def load_run(path: Path, device: torch.device, weights: str = "ema") -> tuple[TrainConfig, SiT, Path]:
    """(settings, model in eval mode, checkpoint) from a run's folder or one checkpoint; ``weights``: ema or weights."""
    config, _, checkpoint = read_run(path)
    return config, build_sampler_model(config.model, read_tensors(checkpoint, weights), device), checkpoint
