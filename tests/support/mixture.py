"""A Gaussian mixture: all that a sampler's network is asked for, and all that its samples should show, in closed form.

Nothing here comes from `erw`: interpolants and schedule are written down again.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Network = Callable[[Tensor, Tensor, Tensor], Tensor]


def interpolant(kind: str, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """alpha, sigma and their derivatives, noise being t = 1."""
    if kind == "linear":
        return 1 - t, t, torch.full_like(t, -1.0), torch.full_like(t, 1.0)
    rate = math.pi / 2
    return (rate * t).cos(), (rate * t).sin(), -rate * (rate * t).sin(), rate * (rate * t).cos()


def alpha_bars() -> Tensor:
    """(1000,) of DiT's linear schedule."""
    return torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), dim=0)


@dataclass(frozen=True)
class Mixture:
    """Of normal distributions with diagonal covariances: weights (K,), means and stds (K, D), fp64; x is (B, 1, 1, D)."""

    weights: Tensor
    means: Tensor
    stds: Tensor

    @classmethod
    def of(cls, weights: list, means: list, stds: list) -> "Mixture":
        """From lists."""
        return cls(*(torch.tensor(values, dtype=torch.float64) for values in (weights, means, stds)))

    def _components(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For x = alpha x_0 + sigma eps, alpha and sigma 0-d: the log density of x at each component (K, ..., 1) but for a
        constant, x's offset from the component's centre (K, ..., D) and the component's variance there (K, ..., D)."""
        shape = (len(self.means), *[1] * (x.dim() - 1), x.shape[-1])
        offset = x - alpha * self.means.view(shape)
        variance = ((alpha * self.stds) ** 2 + sigma**2).view(shape)
        scale = self.weights.log() - 0.5 * variance.log().flatten(1).sum(dim=1)
        distance = sum((offset**2 / variance).split(1, dim=-1))
        return scale.view(-1, *[1] * x.dim()) - 0.5 * distance, offset, variance

    def log_density(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """But for a constant, (..., 1)."""
        return self._components(x, alpha, sigma)[0].logsumexp(dim=0)

    def expected(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """E[x_0 | x] and E[eps | x]: those of the components, weighted by their posteriors."""
        terms, offset, variance = self._components(x, alpha, sigma)
        pull = terms.softmax(dim=0) * offset / variance
        stds = self.stds.view(variance.shape)
        clean = (terms.softmax(dim=0) * self.means.view(variance.shape) + alpha * stds**2 * pull).sum(dim=0)
        return clean, sigma * pull.sum(dim=0)

    def velocity(self, kind: str) -> Network:
        """What a perfect flow network gives."""

        def network(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
            alpha, sigma, d_alpha, d_sigma = interpolant(kind, t[0])  # a sampler asks for one t at a time
            clean, noise = self.expected(x, alpha, sigma)
            return d_alpha * clean + d_sigma * noise

        return network

    def noise(self, v: float) -> Network:
        """What a perfect DDPM network gives, with v -1 (the posterior's variance) or 1 (beta)."""
        table = alpha_bars()

        def network(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
            kept = table[int(t[0])]
            _, noise = self.expected(x, kept.sqrt(), (1 - kept).sqrt())
            return torch.cat([noise, torch.full_like(noise, v)], dim=1)

        return network

    def flowed(self, start: Tensor) -> Tensor:
        """Where the exact flow takes ``start`` (B, 1, 1, 1), in one dimension: it keeps quantiles. By bisection."""
        quantile = torch.special.ndtr(start)
        low, high = torch.full_like(start, -50.0), torch.full_like(start, 50.0)
        for _ in range(80):
            middle = (low + high) / 2
            below = (self.weights * torch.special.ndtr((middle - self.means[:, 0]) / self.stds[:, 0])).sum(-1, keepdim=True)
            low, high = torch.where(below < quantile, middle, low), torch.where(below < quantile, high, middle)
        return (low + high) / 2

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of samples x (..., D), a row each: x, the products of its distances from the mean, each component's posterior;
        and what these are on average: mean, covariance and weights."""
        mean = self.weights @ self.means
        spread = self.means - mean
        covariance = torch.einsum("k,ki,kj->ij", self.weights, spread, spread) + torch.diag(self.weights @ self.stds**2)
        x = x.double().reshape(-1, len(mean))
        posterior = self._components(x, torch.tensor(1.0), torch.tensor(0.0))[0].softmax(dim=0).squeeze(-1).T
        centred = x - mean
        rows = [x, (centred.unsqueeze(2) * centred.unsqueeze(1)).flatten(1), posterior]
        return torch.cat(rows, dim=1), torch.cat([mean, covariance.flatten(), self.weights])
