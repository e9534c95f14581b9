"""Samplers of a flow, from noise at t = 1 to data at t = 0. x (B, C, S, S) fp64 noise, y (B,) labels."""

from collections.abc import Callable

import torch
from torch import Tensor

from erw.errors import UserError
from erw.objectives.flow import Flow, Interpolant, coefficients
from erw.samplers.config import SampleConfig
from erw.samplers.guidance import Network

Noise = Callable[[int], Tensor]
# Where a coefficient of the SDE is infinite at t = 1, sampling starts this much below it.
_START_GAP = 1e-3


def _velocity(network: Network, channels: int) -> Network:
    """The velocity alone: networks with twice the channels have a second half that flows do not use."""
    return lambda x, t, y: network(x, t.expand(len(x)), y)[:, :channels]


def euler(network: Network, x: Tensor, y: Tensor, config: SampleConfig, objective: Flow, noise: Noise) -> Tensor:
    """Euler's method for dx = v dt over equal steps. First order."""
    velocity = _velocity(network, x.shape[1])
    times = torch.linspace(1, 0, config.steps + 1, dtype=torch.float64)
    for now, then in zip(times[:-1], times[1:], strict=True):
        x = x + (then - now) * velocity(x, now, y)
    return x


def heun(network: Network, x: Tensor, y: Tensor, config: SampleConfig, objective: Flow, noise: Noise) -> Tensor:
    """Heun's method over equal steps: two evaluations each. Second order."""
    velocity = _velocity(network, x.shape[1])
    times = torch.linspace(1, 0, config.steps + 1, dtype=torch.float64)
    for now, then in zip(times[:-1], times[1:], strict=True):
        first = velocity(x, now, y)
        second = velocity(x + (then - now) * first, then, y)
        x = x + (then - now) / 2 * (first + second)
    return x


def dopri5(network: Network, x: Tensor, y: Tensor, config: SampleConfig, objective: Flow, noise: Noise) -> Tensor:
    """Dormand-Prince with adaptive steps, by torchdiffeq. Fifth order. Its steps are chosen for the batch as a whole, so
    an image depends, within the tolerance, on the images beside it."""
    try:
        from torchdiffeq import odeint
    except ImportError:
        raise UserError("--sample.sampler dopri5 needs torchdiffeq: pip install torchdiffeq") from None

    velocity = _velocity(network, x.shape[1])
    ends = torch.tensor([1.0, 0.0], dtype=torch.float64, device=x.device)
    path = odeint(lambda t, x: velocity(x, t, y), x, ends, method="dopri5", rtol=config.tolerance, atol=config.tolerance)
    return path[-1]


def score(v: Tensor, x: Tensor, t: Tensor, kind: Interpolant = "linear") -> Tensor:
    """Score of the marginal at ``t`` (0-d, above 0) from its velocity (SiT, Eq. 9): minus the expected noise over sigma."""
    alpha, sigma, d_alpha, d_sigma = coefficients(kind, t)
    return -(alpha * v - d_alpha * x) / (alpha * d_sigma - d_alpha * sigma) / sigma


def half_diffusion(config: SampleConfig, kind: Interpolant, t: Tensor) -> Tensor:
    """w_t / 2 of the reverse SDE at ``t`` (0-d), the forms of SiT's Table 2 (which counts t from noise to data)."""
    alpha, sigma, d_alpha, d_sigma = coefficients(kind, t)
    norm = config.diffusion_norm
    forms = {
        "constant": lambda: norm * torch.ones_like(t),
        "sigma": lambda: norm * sigma,
        "sbdm": lambda: norm * (sigma * d_sigma - d_alpha / alpha * sigma**2),
        "linear": lambda: norm * t,
        "decreasing": lambda: 0.25 * (1 - norm * torch.cos(torch.pi * t)) ** 2,
        "increasing-decreasing": lambda: norm * torch.sin(torch.pi * t) ** 2,
    }
    return forms[config.diffusion]()


def euler_maruyama(network: Network, x: Tensor, y: Tensor, config: SampleConfig, objective: Flow,
                   noise: Noise) -> Tensor:  # fmt: skip
    """Euler-Maruyama for the reverse SDE dx = (v - w/2 score) dt + sqrt(w) dW (SiT, Eq. 5). First order in mean.

    The last step, from ``last_step`` to 0, adds no noise (REPA's and SiT's protocol).
    """
    kind = objective.interpolant
    velocity = _velocity(network, x.shape[1])
    start = 1 - _START_GAP if config.diffusion == "sbdm" else 1
    times = torch.linspace(start, config.last_step, config.steps, dtype=torch.float64)

    def drift(x: Tensor, t: Tensor) -> Tensor:
        v = velocity(x, t, y)
        return v - half_diffusion(config, kind, t) * score(v, x, t, kind)

    for i, (now, then) in enumerate(zip(times[:-1], times[1:], strict=True)):
        spread = (2 * half_diffusion(config, kind, now) * (now - then)).sqrt()
        x = x + (then - now) * drift(x, now) + spread * noise(i)
    return x - times[-1] * drift(x, times[-1])
