"""Flow matching (SiT, Sec. 2): x_t = alpha_t x + sigma_t eps, velocity target alpha'_t x + sigma'_t eps.

t = 0 is data and t = 1 is noise, as in REPA (SiT's own code counts the other way).
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from erw import rng
from erw.objectives.base import Objective
from erw.ops import OpSet
from erw.rng import Purpose
from erw.settings import setting

Interpolant = Literal["linear", "cosine"]


def coefficients(kind: Interpolant, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(alpha, sigma, d alpha / dt, d sigma / dt) at ``t``, any shape (SiT, Sec. 2.3: linear, and GVP as ``cosine``)."""
    if kind == "linear":
        one = torch.ones_like(t)
        return 1 - t, t, -one, one
    angle = t * (math.pi / 2)
    cosine, sine = torch.cos(angle), torch.sin(angle)
    return cosine, sine, -math.pi / 2 * sine, math.pi / 2 * cosine


def interpolate(x: Tensor, noise: Tensor, t: Tensor, kind: Interpolant = "linear") -> tuple[Tensor, Tensor]:
    """x_t and the velocity target, from clean x and noise (B, C, S, S) and t (B,)."""
    alpha, sigma, d_alpha, d_sigma = coefficients(kind, t.view(-1, *[1] * (x.dim() - 1)))
    return alpha * x + sigma * noise, d_alpha * x + d_sigma * noise


@dataclass(frozen=True, kw_only=True)
class Flow(Objective):
    """SiT's objective: predict the velocity."""

    samplers: ClassVar[tuple[str, ...]] = ("ode", "heun", "dopri5", "sde")

    name: str = "flow"
    interpolant: Interpolant = setting("linear", "linear; cosine: SiT's GVP, variance-preserving")
    time: Literal["uniform", "lognormal"] = setting(
        "uniform", "distribution of t; lognormal: sigma / alpha is exp(N(0, 1)), as in EDM and REPA's code"
    )

    def times(self, seed: int, index: Tensor) -> Tensor:
        """t (B,) fp32 of stream positions ``index`` (B,)."""
        if self.time == "uniform":
            return rng.uniform(seed, index, Purpose.TIME)
        ratio = rng.normal(seed, index, Purpose.TIME, ()).exp()
        return ratio / (1 + ratio) if self.interpolant == "linear" else torch.atan(ratio) * (2 / math.pi)

    def corrupt(self, seed: int, latents: Tensor, index: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        noise = rng.normal(seed, index, Purpose.NOISE, tuple(latents.shape[1:]))
        t = self.times(seed, index)
        x, velocity = interpolate(latents, noise, t, self.interpolant)
        return x, t, {"velocity": velocity}

    def noised(self, clean: Tensor, noise: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        return interpolate(clean, noise, time, self.interpolant)[0], time

    def losses(self, prediction: Tensor, x: Tensor, t: Tensor, target: dict[str, Tensor], ops: OpSet) -> dict[str, Tensor]:
        # Public SiT networks have twice the channels; the second half has no use and no gradient.
        velocity = prediction[:, : x.shape[1]]
        return {"velocity": ops.velocity_mse(velocity, target["velocity"])}
