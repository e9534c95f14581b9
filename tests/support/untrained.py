"""A run that was never trained, of random weights: all that sampling needs, in a tenth of a second."""

from dataclasses import replace
from pathlib import Path

import torch

from erw.checkpoint import Meta, save
from erw.config import TrainConfig
from erw.models.sit import SiT
from erw.settings import to_dict
from tiny import tiny


def untrained(out: Path, name: str = "sit", seed: int = 0, **sections) -> tuple[Path, TrainConfig]:
    """(its folder, its settings): the tiny run of that name, whose output layer is not zero."""
    config = tiny(name, out, sample={"steps": 4}, **sections)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SiT(config.model)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    config = replace(config, train=replace(config.train, images=64))
    meta = Meta(images=64, phase="train", steps=4, config=to_dict(config), accounts={})
    save(out / "checkpoints", meta, lambda key: dict(weights), {}, keep=1, writes=True, keys=("weights", "ema"))
    return out, config
