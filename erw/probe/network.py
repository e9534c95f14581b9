"""Networks to look into, and their hidden states: block outputs at a given t, by the model's own taps."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from erw import rng
from erw.build import build_sampler_model, build_step
from erw.checkpoint import found, locate, read_meta, read_tensors
from erw.config import TrainConfig, config_from_dict
from erw.engine.config import EngineConfig
from erw.errors import UserError
from erw.models.sit import SiT
from erw.objectives import Objective
from erw.probe.images import PROBE_SEED, Split
from erw.rng import Purpose
from erw.types import Phase

_BATCH = 250


@dataclass(frozen=True)
class Network:
    """A backbone at one moment of its training. ``phase`` is "" for one that was not trained."""

    model: SiT
    objective: Objective
    images: int
    phase: str

    @property
    def blocks(self) -> tuple[int, ...]:
        """The blocks that exist, counted from 1."""
        return tuple(range(self.model.first_block, len(self.model.blocks) + 1))


def checkpoints_of(path: Path) -> list[Path]:
    """The checkpoints that ``path`` means, oldest first: all of a run, or the one.

    Raises `UserError` where there is none.
    """
    newest = locate(path)
    return [newest] if newest == path else found(path / "checkpoints")


def config_of(checkpoint: Path) -> TrainConfig:
    """The settings that ``checkpoint`` was written with."""
    return config_from_dict(read_meta(checkpoint).config)


def load_network(checkpoint: Path, device: torch.device, weights: str = "ema") -> Network:
    """The backbone in ``checkpoint``; of one within ERW's warm-up, the blocks that exist. ``weights``: ema or weights."""
    meta = read_meta(checkpoint)
    config = config_from_dict(meta.config)
    phase = config.method.phase(max(meta.images - 1, 0))
    model = build_sampler_model(config.model, read_tensors(checkpoint, weights), device, phase)
    return Network(model, config.objective, meta.images, meta.phase)


def untrained(config: TrainConfig, device: torch.device) -> Network:
    """The network as the run of ``config`` began, from its seed. (What --train.init_from laid over that is not in it.)"""
    step = build_step(replace(config, engine=EngineConfig()), Phase(name="untrained"))
    return Network(step.model.eval().requires_grad_(False).to(device), config.objective, 0, "")


@torch.no_grad()
def hidden_states(network: Network, images: Split, time: float, blocks: tuple[int, ...], tokens: bool = False,
                  labels: Tensor | None = None) -> dict[int, Tensor]:  # fmt: skip
    """Outputs of ``blocks`` at ``time`` in 0..1 (0 is data), by block, on the network's device: (N, D) means over tokens, or
    (N, T, D).

    Noise is a function of the image alone, the same for every network and time. The class is the null class, for a label
    would tell the probe its answer; ``labels`` (N,) overrides that.
    """
    model = network.model
    device = next(model.parameters()).device
    parts: dict[int, list[Tensor]] = {block: [] for block in blocks}
    for start in range(0, len(images), _BATCH):
        rows = slice(start, start + _BATCH)
        clean, index = images.latents[rows].to(device), images.index[rows].to(device)
        noise = rng.normal(PROBE_SEED, index, Purpose.NOISE, tuple(clean.shape[1:]))
        x, t = network.objective.noised(clean, noise, torch.full((len(clean),), time, device=device))
        null = torch.full_like(index, model.config.num_classes)
        output = model(x, t, null if labels is None else labels[rows].to(device), taps=blocks)
        for block in blocks:
            tapped = output.taps[block].float()
            parts[block].append(tapped if tokens else tapped.mean(dim=1))
    return {block: torch.cat(found) for block, found in parts.items()}


def chosen_blocks(wanted: tuple[int, ...] | None, network: Network, name: str) -> tuple[int, ...]:
    """Those of the ``wanted`` blocks (None: all) that the network has; a warm-up's has only some.

    Raises `UserError` for a block that is not in the whole model either, and where none is left.
    """
    depth = network.model.config.depth
    for block in wanted or ():
        if not 1 <= block <= depth:
            raise UserError(f"--layers {block} is not a block of {name}: it has blocks 1 to {depth}")
    blocks = tuple(block for block in wanted or network.blocks if block in network.blocks)
    if not blocks:
        have = f"{network.blocks[0]} to {network.blocks[-1]}"
        raise UserError(f"--layers {','.join(map(str, wanted))}: {name} lies in the warm-up and has only blocks {have}")
    return blocks
