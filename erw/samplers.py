"""Samplers: from noise at t = 1 to data at t = 0 along the learned velocity. Pure functions, fp64 state.

Guidance (Ho & Salimans 2022) within an interval of t (Kynkaanniemi et al. 2024):
v = v_null + scale * (v_label - v_null) for low <= t <= high, v = v_label outside.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from erw import rng
from erw.errors import UserError
from erw.rng import Purpose
from erw.settings import setting

Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Settings of sampling. The papers' protocol is sde with 250 steps."""

    sampler: Literal["ode", "sde"] = setting("sde", "ode: Euler; sde: Euler-Maruyama with diffusion w_t = 2t")
    steps: int = setting(250, "network evaluations (twice that many passes under guidance)")
    guidance: float = setting(1.0, "guidance scale; 1 is none")
    guidance_low: float = setting(0.0, "lowest t with guidance")
    guidance_high: float = setting(1.0, "highest t with guidance")
    last_step: float = setting(0.04, "sde: length of the last, deterministic step")

    def __post_init__(self):
        if self.steps < 2:
            raise UserError(f"--sample.steps must be at least 2, not {self.steps}")
        if not 0 < self.last_step < 1:
            raise UserError(f"--sample.last_step must lie between 0 and 1, not {self.last_step}")


def guided(velocity: Velocity, config: SampleConfig, null: int) -> Velocity:
    """``velocity`` with guidance; both halves go through the network as one batch."""
    if config.guidance == 1.0:
        return velocity

    def with_guidance(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        if not config.guidance_low <= float(t[0]) <= config.guidance_high:
            return velocity(x, t, y)
        both = velocity(x.repeat(2, 1, 1, 1), t.repeat(2), torch.cat([y, torch.full_like(y, null)]))
        label, free = both.chunk(2)
        return free + config.guidance * (label - free)

    return with_guidance


def euler(velocity: Velocity, x: Tensor, y: Tensor, steps: int) -> Tensor:
    """Euler's method for dx = v dt over ``steps`` equal steps. x (B, C, S, S) fp64 noise, y (B,) labels."""
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    for now, then in zip(times[:-1], times[1:], strict=True):
        x = x + (then - now) * velocity(x, now.expand(len(x)), y)
    return x


def score(v: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """Score of the linear interpolant's marginal from its velocity: -((1 - t) v + x) / t. t (0-d) above 0."""
    return -((1 - t) * v + x) / t


def euler_maruyama(velocity: Velocity, x: Tensor, y: Tensor, steps: int, last_step: float,
                   noise: Callable[[int], Tensor]) -> Tensor:  # fmt: skip
    """Euler-Maruyama for the reverse SDE dx = (v - w/2 score) dt + sqrt(w) dW with w_t = 2t (SiT, Sec. 2.2; REPA's
    protocol). The last step, from ``last_step`` to 0, adds no noise. ``noise(i)`` gives step i's (B, C, S, S) draws.
    """
    times = torch.linspace(1, last_step, steps, dtype=torch.float64)
    for i, (now, then) in enumerate(zip(times[:-1], times[1:], strict=True)):
        v = velocity(x, now.expand(len(x)), y)
        drift = v - now * score(v, x, now)
        x = x + (then - now) * drift + (2 * now * (now - then)).sqrt() * noise(i)
    v = velocity(x, times[-1].expand(len(x)), y)
    return x - times[-1] * (v - times[-1] * score(v, x, times[-1]))


@torch.no_grad()
def sample(velocity: Velocity, config: SampleConfig, *, seed: int, index: Tensor, y: Tensor, shape: tuple[int, ...],
           null: int) -> Tensor:  # fmt: skip
    """Latents (B, *shape) fp32. All randomness depends on (seed, index): index (B,) int64 numbers the images."""
    x = rng.normal(seed, index, Purpose.SAMPLER_START, shape).double()
    velocity = guided(velocity, config, null)
    if config.sampler == "ode":
        return euler(velocity, x, y, config.steps).float()

    def noise(i: int) -> Tensor:
        return rng.normal(seed, index, Purpose.SAMPLER_STEP, shape, stream=i).double()

    return euler_maruyama(velocity, x, y, config.steps, config.last_step, noise).float()
