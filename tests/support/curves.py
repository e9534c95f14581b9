"""Losses of 200 steps from the same non-zero weights, on the same draws: the published step and ours, as JSON by name.

A program of its own, without Triton's interpreter: ``python tests/support/curves.py``.
"""

import json
import sys

import torch
from torch import Tensor, nn

from erw.bench.ours import OurStep
from erw.bench.reference import ReferenceSiT, alignment_loop
from erw.bench.reference_step import ReferenceStep
from erw.models.sit import SiTConfig
from erw.objectives.flow import Flow
from erw.ops import FUSED
from erw.step import public_name
from erw.types import Phase

STEPS, BATCH, FEATURES, DEPTH = 200, 8, 48, 2
CONFIG = SiTConfig(depth=3, width=64, num_heads=4, input_size=8, num_classes=10)
CPU = torch.device("cpu")


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Moments with a standard deviation of 0, labels, teacher features."""
    generator = torch.Generator().manual_seed(1)
    mean = 5 * torch.randn(BATCH, 4, 8, 8, generator=generator)
    labels = torch.randint(10, (BATCH,), generator=generator)
    return torch.cat((mean, torch.zeros_like(mean)), dim=1), labels, torch.randn(BATCH, 16, FEATURES, generator=generator)


def weights() -> nn.Module:
    """The published network; none of its weights is zero."""
    torch.manual_seed(0)
    model = ReferenceSiT(CONFIG, encoder_depth=DEPTH, feature_width=FEATURES, label_dropout=0.0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.05)
    return model


class Draws:
    """The published losses on our draws of noise, t and label drop: those of step 0, 1, ..."""

    def __init__(self):
        self.index = torch.arange(BATCH)

    def __call__(self, model, latents: Tensor, labels: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        given = Flow().draw(Phase(name="full"), 0, latents, labels, self.index, CONFIG.num_classes)
        self.index = self.index + BATCH
        velocity, projected = model(given.x, given.t, given.y)
        return (velocity - given.target["velocity"]).square().mean(dim=(1, 2, 3)), alignment_loop(projected[0], features)


def published(precision: str, compile: bool = False) -> list[float]:
    """Losses of the published step."""
    step = ReferenceStep(weights(), device=CPU, precision=precision, losses=Draws(), compile=compile)
    numbers = [step(*GIVEN) for _ in range(STEPS)]
    return [row["loss"] + 0.5 * row["alignment"] for row in numbers]


def ours(dtype: torch.dtype) -> list[float]:
    """Losses of our fast path: fused functions, one modulation matmul, compiled blocks, our optimizer."""
    step = OurStep(CONFIG, device=CPU, encoder_depth=DEPTH, feature_width=FEATURES, batch=BATCH, dtype=dtype, compile=True,
                   ops=FUSED)  # fmt: skip
    start = dict(weights().named_parameters())
    names = [public_name(name) for name, p in step.module.named_parameters() if p.requires_grad]
    with torch.no_grad():
        for name, master, parameter in zip(names, step.masters, step.parameters, strict=True):
            master.copy_(start[name])
            parameter.copy_(start[name])
    return [float(step(*GIVEN)["loss"]) for _ in range(STEPS)]


GIVEN = inputs()

if __name__ == "__main__":
    curves = {
        "published bf16": published("bf16"),
        "published bf16 compiled": published("bf16", compile=True),
        "ours bf16": ours(torch.bfloat16),
        "published fp32": published("fp32"),
        "ours fp32": ours(torch.float32),
    }
    json.dump(curves, sys.stdout)
