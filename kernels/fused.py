"""Functions around matmuls that keep inputs and statistics only, and compute the cheap part again for the weight gradients.

As separate operations, the Linear after a modulation or a GELU keeps its own input for its weight gradient, so fusing the
elementwise part saves no memory. Here the pair is one function:

    adaln_linear(x, ...) = Linear(adaln_modulate(x))       keeps x, mean, rstd        not the modulated x
    mlp(x, ...) = Linear(GELU(Linear(x)))                  keeps x and fc1's output   not the activation

The backward writes the modulated x (or the activation) anew in the same pass that differentiates it. Matmuls are torch's.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from erw.kernels.adaln_modulate import EPS, adaln_again, adaln_statistics
from erw.kernels.bias_gelu import bias_gelu, bias_gelu_again


def adaln_linear(x: Tensor, *, shift: Tensor, scale: Tensor, weight: Tensor, bias: Tensor | None, eps: float = EPS) -> Tensor:
    """``linear(adaln_modulate(x))``: x (B, T, D), shift and scale (B, D), weight (E, D), bias (E,) or None to (B, T, E).

    x keeps its own dtype; the others share one, or are cast to autocast's where it is on.
    """
    shift, scale, weight, bias = _cast(x.device.type, shift, scale, weight, bias)
    return _AdalnLinear.apply(x, shift, scale, weight, bias, eps)


def mlp(x: Tensor, *, fc1_weight: Tensor, fc1_bias: Tensor, fc2_weight: Tensor, fc2_bias: Tensor) -> Tensor:
    """``linear(gelu(linear(x)))`` with the tanh GELU: x (..., D), fc1 (H, D), fc2 (D, H) to (..., D)."""
    return _Mlp.apply(*_cast(x.device.type, x, fc1_weight, fc1_bias, fc2_weight, fc2_bias))


def _cast(device: str, *tensors: Tensor | None) -> list[Tensor | None]:
    """As autocast would hand them to a Linear."""
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [None if t is None else t.to(dtype) for t in tensors]


def _weight_gradient(dout: Tensor, x: Tensor) -> Tensor:
    """(E, D) from (..., E) and (..., D)."""
    return dout.flatten(0, -2).T @ x.flatten(0, -2)


class _AdalnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, shift, scale, weight, bias, eps):
        modulated, mean, rstd = adaln_statistics(x, shift, scale, eps)
        ctx.save_for_backward(x, shift, scale, weight, mean, rstd)
        ctx.has_bias = bias is not None
        return F.linear(modulated, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        x, shift, scale, weight, mean, rstd = ctx.saved_tensors
        dx, dshift, dscale, modulated = adaln_again(x, shift, scale, dout @ weight, mean, rstd)
        dbias = dout.flatten(0, -2).sum(dim=0) if ctx.has_bias else None
        return dx, dshift, dscale, _weight_gradient(dout, modulated), dbias, None


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, fc1_weight, fc1_bias, fc2_weight, fc2_bias):
        hidden = F.linear(x, fc1_weight)
        ctx.save_for_backward(x, hidden, fc1_weight, fc1_bias, fc2_weight)
        return F.linear(bias_gelu(hidden, bias=fc1_bias), fc2_weight, fc2_bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        x, hidden, fc1_weight, fc1_bias, fc2_weight = ctx.saved_tensors
        dhidden, dbias, activation = bias_gelu_again(hidden, fc1_bias, dout @ fc2_weight)
        dx = dhidden @ fc1_weight
        dfc2 = _weight_gradient(dout, activation)
        return dx, _weight_gradient(dhidden, x), dbias, dfc2, dout.flatten(0, -2).sum(dim=0)
