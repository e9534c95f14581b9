"""The MLP of a block for torch.compile on a CPU: fc2(gelu(fc1(x))), GELU by its tanh approximation.

tanh is written by the exponential, which is vectorised well, and the derivative comes out of the same pass:

    gelu(z) = z s,   gelu'(z) = s + z s (1 - s) u'(z),   s = sigmoid(u),   u(z) = 2 sqrt(2 / pi) (z + 0.044715 z^3)

Kept for the backward: x, gelu(z) and gelu'(z), each rounded once; z itself is not. Linears are those of `_cpu_linear`.
"""

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from erw.kernels._cpu_linear import affine, as_autocast, bias_gradient, weight_gradient

_TWICE, _CUBE = 2 * math.sqrt(2 / math.pi), 0.044715


def cpu_mlp(x: Tensor, fc1_weight: Tensor, fc1_bias: Tensor, fc2_weight: Tensor, fc2_bias: Tensor) -> Tensor:
    """x (..., D), weights (E, D) and (D, E), biases (E,) and (D,) to (..., D); all of one dtype, or cast to autocast's where
    it is on."""
    return _Mlp.apply(*as_autocast(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias))


def _gelu(z: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """gelu(z) and its derivative, of fp32 (or fp64), each rounded once to ``dtype``."""
    square = z * z
    s = torch.sigmoid(_TWICE * z * (1 + _CUBE * square))
    slope = s + z * s * (1 - s) * (_TWICE * (1 + 3 * _CUBE * square))
    return (z * s).to(dtype), slope.to(dtype)


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, fc1_weight, fc1_bias, fc2_weight, fc2_bias):
        hidden, slope = _gelu(affine(x.reshape(-1, x.shape[-1]), fc1_weight, fc1_bias), x.dtype)
        ctx.save_for_backward(x, fc1_weight, fc2_weight, slope, hidden)
        return affine(hidden, fc2_weight, fc2_bias).to(x.dtype).view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        x, fc1_weight, fc2_weight, slope, hidden = ctx.saved_tensors
        dout, rows = (t.reshape(-1, t.shape[-1]) for t in (dout, x))
        dz = (dout @ fc2_weight) * slope
        dx = (dz @ fc1_weight).view_as(x)
        return dx, weight_gradient(dz, rows), bias_gradient(dz), weight_gradient(dout, hidden), bias_gradient(dout)
