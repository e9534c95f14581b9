"""Samplers of a DDPM with learned variance, over some of its 1,000 steps. x (B, C, S, S) fp64 noise, y (B,) labels."""

from collections.abc import Callable

import torch
from torch import Tensor

from erw.objectives.ddpm import STEPS, Ddpm, Schedule
from erw.samplers.config import SampleConfig, check_chain
from erw.samplers.guidance import Network

Noise = Callable[[int], Tensor]


def respaced(steps: int) -> Tensor:
    """(steps,) int64: the evenly spaced ones of 0..999, both ends included (Nichol & Dhariwal, Sec. 4)."""
    check_chain(steps)
    stride = (STEPS - 1) / (steps - 1)
    # Added up rather than multiplied, as in the papers' code: sums that land near a half round the same way.
    kept, position = [], 0.0
    for _ in range(steps):
        kept.append(round(position))
        position += stride
    return torch.tensor(kept)


def ancestral_step(schedule: Schedule, prediction: Tensor, x: Tensor, step: Tensor, noise: Tensor) -> Tensor:
    """x_{t-1} from x_t (Ho et al., Alg. 2, with the learned variance); step 0 adds no noise. step (B,) int64."""
    eps, v = prediction.chunk(2, dim=1)
    mean = schedule.posterior_mean(schedule.clean(x, eps, step), x, step)
    spread = torch.exp(0.5 * schedule.log_variance(v, step))
    return mean + (step != 0).to(x.dtype).view(-1, 1, 1, 1) * spread * noise


def ddim_step(schedule: Schedule, prediction: Tensor, x: Tensor, step: Tensor, noise: Tensor, eta: float) -> Tensor:
    """x_{t-1} from x_t (Song et al., arXiv 2010.02502, Eq. 12)."""
    eps, _ = prediction.chunk(2, dim=1)
    now, then = schedule.at("alpha_bar", step, x), schedule.at("previous", step, x)
    spread = eta * ((1 - then) / (1 - now)).sqrt() * (1 - now / then).sqrt()
    mean = then.sqrt() * schedule.clean(x, eps, step) + (1 - then - spread**2).sqrt() * eps
    return mean + (step != 0).to(x.dtype).view(-1, 1, 1, 1) * spread * noise


def ancestral(network: Network, x: Tensor, y: Tensor, config: SampleConfig, objective: Ddpm, noise: Noise) -> Tensor:
    """DiT's sampler: the reverse chain, respaced to ``config.steps``, with the learned variance."""
    return _chain(network, x, y, config, noise, ancestral_step)


def ddim(network: Network, x: Tensor, y: Tensor, config: SampleConfig, objective: Ddpm, noise: Noise) -> Tensor:
    """DDIM, respaced to ``config.steps``; deterministic with ``eta`` 0."""
    return _chain(network, x, y, config, noise, lambda *given: ddim_step(*given, config.eta))


def _chain(network: Network, x: Tensor, y: Tensor, config: SampleConfig, noise: Noise, advance: Callable) -> Tensor:
    schedule = Schedule(respaced(config.steps), x.device)
    for position in reversed(range(len(schedule))):
        step = torch.full((len(x),), position, device=x.device)
        t = schedule.at("timesteps", step, x).flatten()
        x = advance(schedule, network(x, t, y), x, step, noise(len(schedule) - 1 - position))
    return x
