"""Flow matching with the linear interpolant (SiT, Sec. 2): x_t = (1 - t) x + t eps, velocity target eps - x.

t = 0 is data and t = 1 is noise, as in REPA. Noise, t and label drop of each image depend on (seed, stream position).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from erw import rng
from erw.errors import UserError
from erw.rng import Purpose
from erw.settings import setting
from erw.types import Phase


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """Settings of the objective."""

    label_dropout: float = setting(0.1, "share of images trained without label, for classifier-free guidance")

    def __post_init__(self):
        if not 0.0 <= self.label_dropout <= 1.0:
            raise UserError(f"--objective.label_dropout must lie in 0..1, not {self.label_dropout}")


@dataclass(frozen=True)
class StepInput:
    """Inputs of one forward: x (B, C, S, S), t (B,), y (B,), and the velocity target, None in a warm-up."""

    x: Tensor
    t: Tensor
    y: Tensor
    target: Tensor | None


def interpolate(x: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """x_t and the velocity target, from clean x and noise (B, C, S, S) and t (B,)."""
    t = t.view(-1, *[1] * (x.dim() - 1))
    return (1 - t) * x + t * noise, noise - x


def draw(config: FlowConfig, phase: Phase, seed: int, latents: Tensor, labels: Tensor, index: Tensor, null: int):
    """The `StepInput` of a micro-batch: latents (B, C, S, S) fp32, labels and index (B,); ``null`` is the null class.

    A phase that does not denoise sees the clean latent at t = 0 (ERW, Sec. 3). Labels are dropped in every phase.
    """
    dropped = rng.uniform(seed, index, Purpose.LABEL_DROP) < config.label_dropout
    y = torch.where(dropped, null, labels)
    if not phase.denoise:
        return StepInput(latents, torch.zeros_like(index, dtype=torch.float32), y, None)
    noise = rng.normal(seed, index, Purpose.NOISE, tuple(latents.shape[1:]))
    t = rng.uniform(seed, index, Purpose.TIME)
    x, target = interpolate(latents, noise, t)
    return StepInput(x, t, y, target)
