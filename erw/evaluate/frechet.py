"""The Frechet distance between Gaussians fitted to two sets of features (Heusel et al., arXiv 1706.08500, Eq. 6)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from erw.errors import UserError

ENOUGH_PER_DIMENSION = 10
RESIDUAL_LIMIT = 1e-6


@dataclass(frozen=True)
class Moments:
    """Mean (D,) fp64, covariance (D, D) fp64 with divisor N - 1, and the count N of the features they were taken of."""

    mean: Tensor
    covariance: Tensor
    count: int

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        """Moments of ``features`` (N, D), any float dtype. Raises `UserError` for N < 2 and for NaN or infinity."""
        if features.ndim != 2:
            raise ValueError(f"features must be (N, D), not {tuple(features.shape)}")
        if len(features) < 2:
            raise UserError(f"a Frechet distance needs at least 2 samples a side, not {len(features)}: draw more")
        if not features.isfinite().all():
            broken = int((~features.isfinite().all(dim=1)).sum())
            raise UserError(f"features of {broken} of {len(features)} samples hold NaN or infinity: check the samples")
        # On the CPU, so that the figure does not depend on the device that made the features.
        features = features.detach().to("cpu", torch.float64)
        return cls(features.mean(dim=0), torch.atleast_2d(torch.cov(features.T)), len(features))

    @property
    def enough(self) -> bool:
        """Whether there are 10 samples a dimension; with fewer the distance is biased upward, the more the fewer."""
        return self.count >= ENOUGH_PER_DIMENSION * len(self.mean)


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mu_a - mu_b|^2 + tr(S_a) + tr(S_b) - 2 tr((S_a S_b)^(1/2)), in fp64.

    With S = F F^T the trace of the root is the sum of the singular values of F_a^T F_b: their squares are the
    eigenvalues of S_a^(1/2) S_b S_a^(1/2), which are those of S_a S_b. Taking singular values squares nothing, so
    covariances of low rank keep their digits. S_a S_b itself is not symmetric, and the general matrix square root it
    would need has been wrong by orders of magnitude on such products (scipy 1.11.2 to 1.12, its issue 19415).

    What LAPACK returned is put back into the equations that it should solve, and `UserError` raised where it does not.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of {len(a.mean)} and {len(b.mean)} dimensions cannot be compared")
    left, right = factor(a.covariance), factor(b.covariance)
    values = torch.linalg.svdvals(left.T @ right)
    # The squares of the singular values add up to tr(S_a S_b), which takes no decomposition to know.
    product = float((a.covariance * b.covariance).sum())
    _require(abs(float(values.square().sum()) - product), float(a.covariance.norm() * b.covariance.norm()))
    distance = squared_shift(a, b) + a.covariance.trace() + b.covariance.trace() - 2 * values.sum()
    # Exact arithmetic never goes below zero; rounding does, for equal inputs.
    return max(float(distance), 0.0)


def squared_shift(a: Moments, b: Moments) -> Tensor:
    """|mu_a - mu_b|^2, a scalar in fp64."""
    return (a.mean - b.mean).square().sum()


def factor(covariance: Tensor) -> Tensor:
    """F (D, D) with F F^T = ``covariance`` (D, D) fp64. Raises `UserError` where it is not symmetric and positive.

    Eigenvalues that rounding alone explains count as zero: their roots, 1e-8 each, would add up over a large null space.
    """
    values, vectors = torch.linalg.eigh(covariance)
    noise = len(values) * torch.finfo(values.dtype).eps * values.abs().max()
    found = vectors * torch.where(values > noise, values, 0).sqrt()
    _require(float((found @ found.T - covariance).norm()), float(covariance.norm()))
    return found


def _require(residual: float, scale: float) -> None:
    """Raise `UserError` unless ``residual`` is small beside ``scale``; NaN is not."""
    if not residual <= RESIDUAL_LIMIT * scale:
        raise UserError(
            f"the root of the covariances leaves a residual of {residual:.3g} where {scale:.3g} is decomposed: the statistics"
            " are no covariances, or this machine's LAPACK is at fault (try another torch build)"
        )
