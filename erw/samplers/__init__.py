"""Samplers: from noise to data. Pure functions with fp64 state. A new one is a function and one line in ``SAMPLERS``."""

from collections.abc import Callable

import torch
from torch import Tensor

from erw import rng
from erw.objectives import Objective
from erw.rng import Purpose
from erw.samplers.config import SampleConfig
from erw.samplers.ddpm import ancestral, ddim
from erw.samplers.flow import dopri5, euler, euler_maruyama, heun
from erw.samplers.guidance import Network, guided

SAMPLERS: dict[str, Callable] = {
    "ode": euler,
    "heun": heun,
    "dopri5": dopri5,
    "sde": euler_maruyama,
    "ddpm": ancestral,
    "ddim": ddim,
}


@torch.no_grad()
def sample(network: Network, config: SampleConfig, objective: Objective, *, seed: int, index: Tensor, y: Tensor,
           shape: tuple[int, ...], null: int) -> Tensor:  # fmt: skip
    """Latents (B, *shape) fp32. All randomness depends on (seed, index): index (B,) int64 numbers the images.

    ``network(x, t, y)`` takes and gives fp64; t (B,) as the objective counts it; its output has C or 2C channels.
    """
    config.check(objective)
    x = rng.normal(seed, index, Purpose.SAMPLER_START, shape).double()

    def noise(step: int) -> Tensor:
        return rng.normal(seed, index, Purpose.SAMPLER_STEP, shape, stream=step).double()

    network = guided(network, config, null, shape[0], objective.time_scale)
    return SAMPLERS[config.sampler](network, x, y, config, objective, noise).float()


__all__ = ["SAMPLERS", "Network", "SampleConfig", "sample"]
