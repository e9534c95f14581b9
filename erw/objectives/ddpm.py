"""DiT's objective (Peebles & Xie, Sec. 3.1): predict the noise of a 1,000-step DDPM and learn its variance.

L = mean squared error of the noise + L_vlb, whose gradient reaches the variance only (Nichol & Dhariwal,
arXiv 2102.09672, Sec. 3.1). The network gives 2C channels: the noise, and v that places the log variance between the
posterior's and beta's.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from erw import rng
from erw.errors import UserError
from erw.models.sit import SiTConfig
from erw.objectives.base import Objective
from erw.ops import OpSet
from erw.rng import Purpose

STEPS = 1000
_BETA_FIRST, _BETA_LAST = 1e-4, 0.02


class Schedule:
    """Tables of a DDPM over ``timesteps``, some or all of the 1,000: each (N,) fp64. Index 0 is nearest to the data.

    Respaced (N < 1,000), the betas follow from the alpha-bars that were kept (Nichol & Dhariwal, Sec. 4).
    """

    def __init__(self, timesteps: Tensor, device: torch.device | None = None):
        betas = torch.linspace(_BETA_FIRST, _BETA_LAST, STEPS, dtype=torch.float64)
        alpha_bar = torch.cumprod(1 - betas, dim=0)[timesteps]
        previous = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
        betas = 1 - alpha_bar / previous
        variance = betas * (1 - previous) / (1 - alpha_bar)
        tables = {
            "timesteps": timesteps.double(),
            "alpha_bar": alpha_bar,
            "previous": previous,
            "signal": alpha_bar.sqrt(),
            "noise": (1 - alpha_bar).sqrt(),
            "inverse_signal": (1 / alpha_bar).sqrt(),
            "noise_to_signal": (1 / alpha_bar - 1).sqrt(),
            "log_beta": betas.log(),
            # The first step's posterior has no variance: its logarithm is the second's, as in the papers' code.
            "posterior_log_variance": variance.clone().index_copy_(0, torch.tensor([0]), variance[1:2]).log(),
            "from_clean": betas * previous.sqrt() / (1 - alpha_bar),
            "from_noisy": (1 - previous) * (1 - betas).sqrt() / (1 - alpha_bar),
        }
        self._tables = {name: table.to(device) for name, table in tables.items()}

    def __len__(self) -> int:
        return len(self._tables["alpha_bar"])

    def at(self, name: str, step: Tensor, like: Tensor) -> Tensor:
        """Entries ``step`` (B,) int64 of a table, in the dtype of ``like`` and shaped to multiply it."""
        return self._tables[name][step].to(like.dtype).view(-1, *[1] * (like.dim() - 1))

    def noised(self, clean: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        """x_t (Ho et al., Eq. 4)."""
        return self.at("signal", step, clean) * clean + self.at("noise", step, clean) * noise

    def clean(self, x: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        """The data that x and its noise imply."""
        return self.at("inverse_signal", step, x) * x - self.at("noise_to_signal", step, x) * noise

    def posterior_mean(self, clean: Tensor, x: Tensor, step: Tensor) -> Tensor:
        """Mean of q(x_{t-1} | x_t, x_0) (Ho et al., Eq. 7)."""
        return self.at("from_clean", step, x) * clean + self.at("from_noisy", step, x) * x

    def log_variance(self, v: Tensor, step: Tensor) -> Tensor:
        """Learned log variance (Nichol & Dhariwal, Eq. 15, v in [-1, 1])."""
        low, high = self.at("posterior_log_variance", step, v), self.at("log_beta", step, v)
        share = (v + 1) / 2
        return share * high + (1 - share) * low


@lru_cache(maxsize=8)
def full_schedule(device: torch.device) -> Schedule:
    """All 1,000 steps on ``device``."""
    return Schedule(torch.arange(STEPS), device)


@dataclass(frozen=True, kw_only=True)
class Ddpm(Objective):
    """DiT's objective: predict noise and variance."""

    samplers: ClassVar[tuple[str, ...]] = ("ddpm", "ddim")
    time_scale: ClassVar[float] = float(STEPS)

    name: str = "ddpm"

    def check(self, model: SiTConfig) -> None:
        if not model.learn_sigma:
            raise UserError("--objective.name ddpm learns its variance, which needs --model.learn_sigma true")

    def corrupt(self, seed: int, latents: Tensor, index: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        noise = rng.normal(seed, index, Purpose.NOISE, tuple(latents.shape[1:]))
        x, t = self.noised(latents, noise, rng.uniform(seed, index, Purpose.TIME))
        return x, t, {"noise": noise, "clean": latents}

    def noised(self, clean: Tensor, noise: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        # A time can be, or round up to, 1.
        step = (time * STEPS).long().clamp(max=STEPS - 1)
        return full_schedule(clean.device).noised(clean, noise, step), step.float()

    def losses(self, prediction: Tensor, x: Tensor, t: Tensor, target: dict[str, Tensor], ops: OpSet) -> dict[str, Tensor]:
        noise, v = prediction.to(torch.promote_types(prediction.dtype, torch.float32)).chunk(2, dim=1)
        bound = vlb(noise.detach(), v, x.to(noise.dtype), target["clean"].to(noise.dtype), t.long())
        return {"mse": ops.velocity_mse(noise, target["noise"]), "vlb": bound}


def vlb(noise: Tensor, v: Tensor, x: Tensor, clean: Tensor, step: Tensor) -> Tensor:
    """The step's term of the variational bound in bits a dimension, (B,): L_{t-1}, at step 0 L_0 (Ho et al., Eq. 5).

    noise and v (B, C, S, S) are the network's output for x at ``step`` (B,) int64; clean is x_0, in [-1, 1] for L_0.
    """
    schedule = full_schedule(x.device)
    mean = schedule.posterior_mean(schedule.clean(x, noise, step), x, step)
    log_variance = schedule.log_variance(v, step)
    true_mean = schedule.posterior_mean(clean, x, step)
    true_log_variance = schedule.at("posterior_log_variance", step, x)
    divergence = gaussian_kl(true_mean, true_log_variance, mean, log_variance)
    decoder = -discretised_log_likelihood(clean, mean, log_variance)
    last = (step == 0).view(-1, *[1] * (x.dim() - 1))
    return torch.where(last, decoder, divergence).flatten(1).mean(dim=1) / math.log(2.0)


def gaussian_kl(mean: Tensor, log_variance: Tensor, other_mean: Tensor, other_log_variance: Tensor) -> Tensor:
    """KL divergence of the first normal distribution from the second, element by element, in nats."""
    ratio = torch.exp(log_variance - other_log_variance)
    distance = (mean - other_mean).square() * torch.exp(-other_log_variance)
    return 0.5 * (ratio + distance - 1 + other_log_variance - log_variance)


def discretised_log_likelihood(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Log probability of the 8-bit bin around ``x`` under a normal distribution (Ho et al., Eq. 13), element by element.

    The normal CDF is the tanh approximation that the papers' code uses; the outermost bins reach to infinity.
    """
    inverse = torch.exp(-0.5 * log_variance)
    upper = _normal_cdf(inverse * (x - mean + 1 / 255))
    lower = _normal_cdf(inverse * (x - mean - 1 / 255))
    floor = 1e-12
    inside = (upper - lower).clamp(min=floor).log()
    outside = torch.where(x > 0.999, (1 - lower).clamp(min=floor).log(), inside)
    return torch.where(x < -0.999, upper.clamp(min=floor).log(), outside)


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
