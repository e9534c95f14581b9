"""The Frechet distance twice, by unlike algorithms of two libraries, so that a fault of one is noticed.

Users have read 20.65 where 7 was right, because of one matrix root in one build of one library.
"""

from dataclasses import dataclass

import numpy as np

from erw.errors import UserError
from erw.evaluate.frechet import Moments, frechet_distance, squared_shift

_SLACK = 1e-9


@dataclass(frozen=True)
class Checked:
    """``distance``: singular values, by torch. ``second``: a symmetric eigenproblem, by numpy. ``tolerance``: how far
    rounding may put the second from the first."""

    distance: float
    second: float
    tolerance: float


def checked_distance(a: Moments, b: Moments) -> Checked:
    """The Frechet distance of ``a`` and ``b``. Raises `UserError` where its two computations disagree."""
    distance = frechet_distance(a, b)
    trace, error = _trace_of_root(a.covariance.numpy(), b.covariance.numpy())
    traces = float(a.covariance.trace() + b.covariance.trace())
    second = float(squared_shift(a, b)) + traces - 2 * trace
    tolerance = 2 * error + _SLACK * (traces + float(squared_shift(a, b)))
    if not abs(distance - max(second, 0.0)) <= tolerance:
        raise UserError(
            f"two ways to compute the Frechet distance disagree: {distance:.6g} (torch), {second:.6g} (numpy), where rounding"
            f" explains {tolerance:.2g}: believe neither, and try other builds of torch and numpy"
        )
    return Checked(distance, second, tolerance)


def _trace_of_root(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """tr((A B)^(1/2)) of covariances (D, D) fp64, from the eigenvalues of A^(1/2) B A^(1/2), and a bound on its error.

    That product squares the scale, so an eigenvalue below ``noise`` is known no better than to its root. Where the
    ranks of A and B say that an eigenvalue is zero, it is taken as zero.
    """
    values, vectors = np.linalg.eigh(a)
    root = (vectors * np.sqrt(np.where(values > _noise(values), values, 0))) @ vectors.T
    squares = np.sort(np.linalg.eigvalsh(root @ b @ root))[::-1]
    others = np.linalg.eigvalsh(b)
    rank = min(int((values > _noise(values)).sum()), int((others > _noise(others)).sum()))
    squares, noise = squares[:rank], _noise(squares)
    known = squares > noise
    error = (~known).sum() * np.sqrt(noise) + (noise / np.sqrt(squares, where=known, out=np.ones_like(squares)))[known].sum()
    return float(np.sqrt(squares[known]).sum()), float(error)


def _noise(values: np.ndarray) -> float:
    """What rounding makes of a zero among ``values``."""
    return len(values) * np.finfo(values.dtype).eps * float(np.abs(values).max())
