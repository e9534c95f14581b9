"""adaLN and gated residual for torch.compile on a CPU; the formulas are those of `adaln_modulate` and `gated_residual`.

Gradients of shift, scale and gate are sums over a sample's tokens (`_cpu_linear.over_tokens`), of products that are first
rounded to the dtype of what they are for. Kept for the backward: x, mean and r (B, T, 1) of the norm; y of the gate.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from erw.kernels._cpu_linear import over_tokens
from erw.kernels.adaln_modulate import EPS


def cpu_adaln_modulate(x: Tensor, *, shift: Tensor, scale: Tensor, eps: float = EPS) -> Tensor:
    """x (B, T, D), shift and scale (B, D) to (B, T, D) of the dtype of ``shift``."""
    return _Adaln.apply(x, shift, scale, eps)


def cpu_gated_residual(x: Tensor, y: Tensor, *, gate: Tensor) -> Tensor:
    """x + gate y: (B, T, D) twice, gate (B, D), to (B, T, D) of the dtype of ``x``."""
    return _Gated.apply(x, y, gate)


def cpu_gated_residual_adaln(
    x: Tensor, y: Tensor, *, gate: Tensor, shift: Tensor, scale: Tensor, eps: float = EPS
) -> tuple[Tensor, Tensor]:
    """Both, one after the other: the new x, and it modulated."""
    x = cpu_gated_residual(x, y, gate=gate)
    return x, cpu_adaln_modulate(x, shift=shift, scale=scale, eps=eps)


def _wide(a: Tensor, b: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)


class _Adaln(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, shift, scale, eps):
        wide = _wide(x, shift)
        mean = x.to(wide).mean(dim=-1, keepdim=True)
        centred = x.to(wide) - mean
        r = (centred.square().mean(dim=-1, keepdim=True) + eps).rsqrt()
        ctx.save_for_backward(x, mean, r, scale)
        return (centred * r * (1 + scale.to(wide).unsqueeze(1)) + shift.to(wide).unsqueeze(1)).to(shift.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        x, mean, r, scale = ctx.saved_tensors
        n, gradient = (x.to(r.dtype) - mean) * r, dout.to(r.dtype)
        g = gradient * (1 + scale.to(r.dtype).unsqueeze(1))
        dx = r * (g - g.mean(dim=-1, keepdim=True) - n * (g * n).mean(dim=-1, keepdim=True))
        return dx.to(x.dtype), over_tokens(dout), over_tokens((gradient * n).to(dout.dtype)), None


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, gate):
        ctx.save_for_backward(y, gate)
        wide = _wide(x, y)
        return (x.to(wide) + gate.to(wide).unsqueeze(1) * y.to(wide)).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        y, gate = ctx.saved_tensors
        wide = _wide(dout, y)
        dy = (dout.to(wide) * gate.to(wide).unsqueeze(1)).to(y.dtype)
        return dout, dy, over_tokens((dout.to(wide) * y.to(wide)).to(gate.dtype))
