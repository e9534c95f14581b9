"""Losses of 200 steps from the same non-zero weights, on the same draws: the published step and ours, as JSON by name.

A program of its own, without Triton's interpreter: ``python tests/support/curves.py``.
"""

import json
import sys

import torch
from torch import Tensor

from erw.bench._ladder import Setup
from erw.bench._scene import Scene
from erw.bench._weights import draw_weights
from erw.bench.ours import OurStep
from erw.bench.reference import ReferenceSiT, alignment_loop
from erw.bench.reference_step import ReferenceStep
from erw.objectives.flow import Flow
from erw.types import Phase

STEPS, BATCH = 200, 8
SCENE = Scene("tiny", BATCH, feature_width=48)
FUSED = ("adaln_linear", "gated_residual_adaln", "gated_residual", "qk_norm_rope", "mlp", "velocity_mse", "cosine_alignment")
FAST = {"compile": True, "loss": "vectorised", "optimizer": "adamw_ema", "host_reads": False}
GPU_PATH = FAST | {"fused": FUSED, "batched_modulation": True}  # on a CPU the kernels' functions are plain PyTorch
CPU_PATH = FAST | {"attention": "matmul"}
CPU = torch.device("cpu")


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """The scene's moments with a standard deviation of 0, labels, teacher features."""
    moments, labels, features = SCENE.inputs(CPU)
    moments[:, moments.shape[1] // 2 :] = 0
    return moments, labels, features


class Draws:
    """The published losses on our draws of noise, t and label drop: those of step 0, 1, ..."""

    def __init__(self):
        self.index = torch.arange(BATCH)

    def __call__(self, model, latents: Tensor, labels: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        given = Flow().draw(Phase(name="full"), 0, latents, labels, self.index, SCENE.config.num_classes)
        self.index = self.index + BATCH
        velocity, projected = model(given.x, given.t, given.y)
        return (velocity - given.target["velocity"]).square().mean(dim=(1, 2, 3)), alignment_loop(projected[0], features)


def published(precision: str, compile: bool = False) -> list[float]:
    """Losses of the published step."""
    model = ReferenceSiT(SCENE.config, encoder_depth=SCENE.encoder_depth, feature_width=SCENE.feature_width, label_dropout=0.0)
    draw_weights(model)
    step = ReferenceStep(model, device=CPU, precision=precision, losses=Draws(), compile=compile)
    numbers = [step(*GIVEN) for _ in range(STEPS)]
    return [row["loss"] + 0.5 * row["alignment"] for row in numbers]


def ours(precision: str, path: dict) -> list[float]:
    """Losses of our fast path: compiled blocks, our optimizer; on GPUs fused functions and one modulation matmul, on CPUs
    operations in forms for their compiler."""
    step = OurStep(Setup(code="ours", precision=precision, **path), SCENE, CPU)
    return [float(step(*GIVEN)["loss"]) for _ in range(STEPS)]


GIVEN = inputs()

if __name__ == "__main__":
    curves = {
        "published bf16": published("bf16"),
        "published bf16 compiled": published("bf16", compile=True),
        "published fp32": published("fp32"),
    }
    for path, settings in {"gpu": GPU_PATH, "cpu": CPU_PATH}.items():
        curves |= {f"ours {path} {precision}": ours(precision, settings) for precision in ("bf16", "fp32")}
    json.dump(curves, sys.stdout)
