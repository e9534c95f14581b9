"""Files as the SiT, DiT and REPA repositories write them, of a tiny model with every weight non-zero."""

import argparse
from pathlib import Path

import torch

from erw.align.projector import Projector
from erw.models.sit import SiT, SiTConfig

MODEL = SiTConfig(depth=2, width=32, num_heads=2, input_size=8, num_classes=10)
CHANNELS = {"sit": True, "dit": True, "repa": False}  # whether the network gives twice as many


def random_sit(config: SiTConfig, seed: int = 0) -> SiT:
    """A network whose every parameter is random."""
    model = SiT(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def published_weights(model: SiT, projector_width: int = 0) -> dict[str, torch.Tensor]:
    """Its state dict; with REPA's projector of one teacher of width 96 where ``projector_width`` is given."""
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    if projector_width:
        projector = Projector(model.config.width, projector_width, 96)
        weights |= {f"projectors.0.{name}": value.clone() for name, value in projector.state_dict().items()}
    return weights


def training_checkpoint(weights: dict[str, torch.Tensor], file: Path, **args) -> Path:
    """A training checkpoint: ``weights`` are the EMA, the model's own are others; options are a Namespace."""
    model = {name: value + 1 for name, value in weights.items()}
    optimizer = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(4)}}, "param_groups": [{"lr": 1e-4}]}
    options = argparse.Namespace(data_path="/data", ckpt=None, epochs=1400, lr=1e-4, **args)
    torch.save({"model": model, "ema": weights, "opt": optimizer, "args": options, "steps": 7}, file)
    return file
