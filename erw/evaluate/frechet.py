"""The Frechet distance between Gaussians fitted to two sets of features (Heusel et al., arXiv 1706.08500, Eq. 6)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from erw.errors import UserError

ENOUGH_PER_DIMENSION = 10


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
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of {len(a.mean)} and {len(b.mean)} dimensions cannot be compared")
    cross = torch.linalg.svdvals(_factor(a.covariance).T @ _factor(b.covariance)).sum()
    shift = (a.mean - b.mean).square().sum()
    distance = shift + a.covariance.trace() + b.covariance.trace() - 2 * cross
    # Exact arithmetic never goes below zero; rounding does, for equal inputs.
    return max(float(distance), 0.0)


def _factor(covariance: Tensor) -> Tensor:
    """F (D, D) with F F^T = ``covariance``; rounding's negative eigenvalues count as zero."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp_min(0).sqrt()
