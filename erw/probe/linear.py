"""A linear probe: how well a linear classifier tells classes from frozen features (REPA, App. C.1).

Batch norm without gain and bias, then a linear layer. Where the paper trains it with Adam for 90 epochs, here the convex
problem is solved: mean cross-entropy + |W|^2 / (2 C N), which is scikit-learn's ``LogisticRegression(C=C)``.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from erw.errors import UserError

STRENGTH = 1.0
_NORM_EPSILON = 1e-5
_TOLERANCE = 1e-6
_ITERATIONS = 2000


@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe, fp64: mean and deviation (D,) of the norm, weight (K, D), bias (K,) and the K classes that it knows.

    ``converged``: whether the largest entry of the loss's gradient fell below 1e-6.
    """

    mean: Tensor
    deviation: Tensor
    weight: Tensor
    bias: Tensor
    classes: Tensor
    converged: bool

    def predict(self, features: Tensor) -> Tensor:
        """(N, D) features to the likeliest classes (N,) int64."""
        logits = F.linear((features.double() - self.mean) / self.deviation, self.weight, self.bias)
        return self.classes[logits.argmax(dim=1)]

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        """The share of ``labels`` (N,) that it predicts."""
        return float((self.predict(features) == labels).double().mean())


def fit(features: Tensor, labels: Tensor, strength: float = STRENGTH) -> LinearProbe:
    """A probe of ``features`` (N, D), any float dtype, for ``labels`` (N,) int64; ``strength`` is C. No random numbers.

    Raises `UserError` for a single class, NaN or infinity.
    """
    if not features.isfinite().all():
        raise UserError("features hold NaN or infinity: check the checkpoint and the teacher")
    classes, targets = labels.unique(return_inverse=True)
    if len(classes) < 2:
        raise UserError(f"a linear probe needs images of two classes, these {len(labels)} have {len(classes)}: raise --count")
    x = features.detach().double()
    mean, deviation = x.mean(dim=0), (x.var(dim=0, unbiased=False) + _NORM_EPSILON).sqrt()
    weight = x.new_zeros(len(classes), x.shape[1]).requires_grad_()
    bias = x.new_zeros(len(classes)).requires_grad_()
    converged = _minimise((x - mean) / deviation, targets, weight, bias, 1 / (2 * strength * len(x)))
    return LinearProbe(mean, deviation, weight.detach(), bias.detach(), classes, converged)


@torch.enable_grad()
def _minimise(x: Tensor, targets: Tensor, weight: Tensor, bias: Tensor, decay: float) -> bool:
    """Bring ``weight`` and ``bias`` to the minimum, in place; whether that was reached."""
    optimizer = torch.optim.LBFGS(
        (weight, bias), max_iter=_ITERATIONS, tolerance_grad=_TOLERANCE, tolerance_change=0.0, history_size=20,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(x, weight, bias), targets) + decay * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    loss()
    return bool(max(p.grad.abs().max() for p in (weight, bias)) <= _TOLERANCE)
