"""How alike two representations of the same images are: CKNNA and linear CKA.

Both compare Gram matrices K and L of features a (N, D) and b (N, E): rows are images, widths may differ.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from erw.errors import UserError

NEIGHBOURS = 10
# In the published code's denominator. With it a representation's likeness to itself is a little below 1.
_EPSILON = 1e-6


def unit_rows(features: Tensor) -> Tensor:
    """(N, D) with rows of length 1, fp64, so that inner products are cosines: what the published score is taken of."""
    return F.normalize(features.double(), dim=1)


def cknna(a: Tensor, b: Tensor, k: int = NEIGHBOURS) -> float:
    """Centred kernel nearest-neighbour alignment (Huh et al., arXiv 2405.07987, App. A) as their code computes it, in fp64.

    K and L keep only pairs (i, j) where j is among the k nearest neighbours of i, by inner product and i itself left out,
    in both; then CKNNA = HSIC(K, L) / (sqrt(HSIC(K, K) HSIC(L, L)) + 1e-6). The paper's formula, which REPA repeats (Eq. 23),
    centres K and L before the choice of pairs and not after, and with the biased estimate: figures from it are others.
    Nearness is not mutual, so K and L are not symmetric, nor is CKNNA: here ``a`` is the network and ``b`` the teacher. About 0
    for representations that share no neighbours. Raises `UserError` unless N > k, and for NaN or infinity.
    """
    _check(a, b)
    if k < 2:
        raise ValueError(f"CKNNA needs k of 2 or more, not {k}")
    if len(a) <= k or len(a) < 4:
        raise UserError(f"CKNNA with k = {k} needs at least {max(k + 1, 4)} images, there are {len(a)}: raise --count")
    K, L = (x.double() @ x.double().T for x in (a, b))
    near_k, near_l = _near(K, k), _near(L, k)
    both = near_k & near_l
    shared = hsic(K * both, L * both)
    own = hsic(K * near_k, K * near_k) * hsic(L * near_l, L * near_l)
    return float(shared / (own.sqrt() + _EPSILON))


def hsic(K: Tensor, L: Tensor) -> Tensor:
    """The unbiased estimate of the Hilbert-Schmidt independence criterion (Song et al., JMLR 13, Eq. 5), a scalar.

    K and L (N, N), N > 3, need not be symmetric; their diagonals do not count.
    """
    n = len(K)
    K, L = (x - x.diag().diag() for x in (K, L))
    # The sum over all entries of K @ L without the product.
    crossed = K.sum(dim=0) @ L.sum(dim=1)
    return ((K * L.T).sum() + K.sum() * L.sum() / ((n - 1) * (n - 2)) - 2 * crossed / (n - 2)) / (n * (n - 3))


def cka(a: Tensor, b: Tensor) -> float:
    """Linear centred kernel alignment (Kornblith et al., arXiv 1905.00414, Eq. 3 with HSIC of Sec. 3), 0 to 1, in fp64.

    |a^T b|^2 / (|a^T a| |b^T b|) with centred columns. Biased upward by few images: random features of width D give about
    D / N. Raises `UserError` for NaN, infinity, and features that are the same for every image.
    """
    _check(a, b)
    a, b = (x.double() - x.double().mean(dim=0) for x in (a, b))
    own = (a.T @ a).norm() * (b.T @ b).norm()
    if own == 0:
        raise UserError("features are the same for every image: there is nothing to compare")
    return float((a.T @ b).square().sum() / own)


def by_token(measure, a: Tensor, b: Tensor) -> float:
    """``measure`` at each token position of a (N, T, D) and b (N, T, E), averaged over the T positions."""
    return sum(measure(a[:, place], b[:, place]) for place in range(a.shape[1])) / a.shape[1]


def _near(gram: Tensor, k: int) -> Tensor:
    """(N, N) bool: True where column j is among the k largest of row i, the diagonal left out."""
    columns = gram.clone().fill_diagonal_(-torch.inf).topk(k, dim=1).indices
    return torch.zeros_like(gram, dtype=torch.bool).scatter_(1, columns, True)


def _check(a: Tensor, b: Tensor) -> None:
    if a.ndim != 2 or b.ndim != 2 or len(a) != len(b):
        raise ValueError(f"features must be (N, D) and (N, E), not {tuple(a.shape)} and {tuple(b.shape)}")
    for features in (a, b):
        if not features.isfinite().all():
            raise UserError("features hold NaN or infinity: check the checkpoint and the teacher")
