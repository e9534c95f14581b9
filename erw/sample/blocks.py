"""Sampling in blocks of a fixed size, so that the bits of an image do not depend on who samples it.

A matmul rounds differently at another batch size. So images are cut into blocks by their number, block k being images
k * batch to (k + 1) * batch - 1, and a block is always computed whole: the last one is filled up with images that nobody
asked for. Which rank computes a block, and when, then changes nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

from erw.errors import RankError, UserError
from erw.latents import Pixels, VaeLatents
from erw.models.sit import SiT
from erw.objectives import Objective
from erw.samplers import SampleConfig, sample

Precision = Literal["fp32", "tf32", "bf16"]
_DECODED_AT_ONCE = 32  # of a VAE's activations, not of its latents, a whole block would be too much


@dataclass(frozen=True)
class Block:
    """Images ``start`` to ``stop - 1``; its ``number`` is its place among the blocks."""

    number: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def cut(count: int, batch: int) -> list[Block]:
    """Blocks of ``batch`` images; the last may want fewer."""
    return [Block(i, start, min(start + batch, count)) for i, start in enumerate(range(0, count, batch))]


class BlockSampler:
    """Samples one block after the other for ``labels`` (N,) int64. Image i depends on (seed, first + i).

    ``batch`` is the block's size, at most N. ``precision``: fp32, as torch's own switches have it; tf32 for matmuls on a GPU;
    or bf16 weights, for which ``model`` is changed in place. The sampler's state is fp64 whatever the network computes in.
    """

    def __init__(self, model: SiT, objective: Objective, config: SampleConfig, labels: Tensor, *, seed: int, first: int = 0,
                 batch: int = 250, precision: Precision = "fp32"):  # fmt: skip
        self.device = next(model.parameters()).device
        check_precision(precision, self.device)
        config.check(objective)
        self.model = model.bfloat16() if precision == "bf16" else model
        self.objective, self.config, self.labels = objective, config, labels
        self.seed, self.first, self.batch = seed, first, min(batch, len(labels))
        self.precision = precision

    def blocks(self) -> list[Block]:
        """All of them."""
        return cut(len(self.labels), self.batch)

    def latents(self, block: Block) -> Tensor:
        """(batch, C, S, S) fp32 on the model's device; the first ``len(block)`` are the block's images."""
        side, channels = self.model.config.input_size, self.model.config.in_channels
        place = torch.arange(block.start, block.start + self.batch)
        y = self.labels[place.clamp(max=len(self.labels) - 1)].to(self.device)
        index = (self.first + place).to(self.device)
        with _matmuls(self.precision):
            return sample(self._network, self.config, self.objective, seed=self.seed, index=index, y=y,
                          shape=(channels, side, side), null=self.model.config.num_classes)  # fmt: skip

    def images(self, block: Block, space: Pixels | VaeLatents) -> Tensor:
        """(batch, C, H, W) fp32, decoded a few at a time; as `latents`. Raises `RankError` for NaN or infinity."""
        latents = self.latents(block)
        if not latents.isfinite().all():
            raise RankError(f"images {block.start} to {block.stop - 1} came out as NaN or infinity: take another checkpoint")
        return torch.cat([space.decode(part) for part in latents.split(_DECODED_AT_ONCE)])

    def _network(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        # A sampler asks for one t at a time. Filling it in on a device spares a copy that the host would wait for.
        if t.device != self.device:
            t = torch.full((len(x),), float(t[0]), dtype=torch.float32, device=self.device)
        return self.model(x.float(), t.float(), y).prediction.double()


def check_precision(precision: Precision, device: torch.device) -> None:
    """Raise `UserError` where ``device`` does not have it."""
    if precision == "tf32" and device.type != "cuda":
        raise UserError("precision tf32 is an NVIDIA GPU's: choose fp32 or bf16")


@contextmanager
def _matmuls(precision: Precision) -> Iterator[None]:
    """Let fp32 matmuls round their inputs to TF32 inside, where ``precision`` is tf32."""
    before = torch.get_float32_matmul_precision()
    if precision == "tf32":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def generate(model: SiT, objective: Objective, config: SampleConfig, labels: Tensor, *, seed: int, first: int = 0,
             batch: int = 250, progress: bool = False) -> Tensor:  # fmt: skip
    """Latents (N, C, S, S) fp32 on the CPU for labels (N,).

    Image i depends on (seed, first + i); on ``batch`` only by rounding (with dopri5: within its tolerance).
    """
    sampler = BlockSampler(model, objective, config, labels, seed=seed, first=first, batch=batch)
    blocks = tqdm(sampler.blocks(), unit="batch", disable=not progress)
    return torch.cat([sampler.latents(block)[: len(block)].cpu() for block in blocks])
