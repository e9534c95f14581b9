"""The MLP of a block for torch.compile on a CPU: fc2(gelu(fc1(x))), GELU by its tanh approximation.

Two things keep the compiler's passes over the wide hidden state from taking as long as the matmuls. tanh is written by the
exponential, which is vectorised well,

    gelu(z) = z s,   gelu'(z) = s + z s (1 - s) u'(z),   s = sigmoid(u),   u(z) = 2 sqrt(2 / pi) (z + 0.044715 z^3)

and biases' gradients are sums over tokens by a matmul with ones. Kept for the backward: x, z and gelu(z), as by autograd.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_TWICE, _CUBE = 2 * math.sqrt(2 / math.pi), 0.044715


def matmul_mlp(x: Tensor, fc1_weight: Tensor, fc1_bias: Tensor, fc2_weight: Tensor, fc2_bias: Tensor) -> Tensor:
    """x (..., D), weights (E, D) and (D, E), biases (E,) and (D,) to (..., D); all of one dtype, or cast to autocast's where
    it is on."""
    given = (x, fc1_weight, fc1_bias, fc2_weight, fc2_bias)
    if torch.is_autocast_enabled(x.device.type):
        given = tuple(tensor.to(torch.get_autocast_dtype(x.device.type)) for tensor in given)
    return _Mlp.apply(*given)


def _gelu(z: Tensor) -> tuple[Tensor, Tensor]:
    """gelu(z) and its derivative, in fp32 (fp64 for fp64), rounded once."""
    wide = z.to(torch.promote_types(z.dtype, torch.float32))
    square = wide * wide
    s = torch.sigmoid(_TWICE * wide * (1 + _CUBE * square))
    slope = s + wide * s * (1 - s) * (_TWICE * (1 + 3 * _CUBE * square))
    return (wide * s).to(z.dtype), slope.to(z.dtype)


def _over_tokens(gradient: Tensor) -> Tensor:
    """(N, E) to (E,): summed in fp32, rounded once."""
    return (gradient.new_ones(1, gradient.shape[0]) @ gradient).squeeze(0)


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, fc1_weight, fc1_bias, fc2_weight, fc2_bias):
        z = F.linear(x, fc1_weight, fc1_bias)
        hidden, _ = _gelu(z)
        ctx.save_for_backward(x, fc1_weight, fc2_weight, z, hidden)
        return F.linear(hidden, fc2_weight, fc2_bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        x, fc1_weight, fc2_weight, z, hidden = ctx.saved_tensors
        dout, rows, hidden = (t.reshape(-1, t.shape[-1]) for t in (dout, x, hidden))
        dz = (dout @ fc2_weight) * _gelu(z)[1].reshape(-1, z.shape[-1])
        dx = (dz @ fc1_weight).view_as(x)
        return dx, dz.t() @ rows, _over_tokens(dz), dout.t() @ hidden, _over_tokens(dout)
