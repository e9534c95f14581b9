"""A linear layer for torch.compile on a CPU: y = x W^T + b.

A weight's gradient dW = dy^T x contracts over tokens, along which neither factor lies in memory: AMX's matmul then runs at half
its speed. Where the product is large, dy is written once more, transposed, in a pass of the compiler's, and the matmul runs at
its own. The bias is added by whatever pass comes next.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Multiply-adds from which on a bf16 product gains more by the transposed copy than the copy costs.
_LARGE = 2**31


def cpu_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x (..., D), weight (E, D), bias (E,) to (..., E); all of one dtype, or cast to autocast's where it is on."""
    return _Linear.apply(*as_autocast(x, weight, bias))


def as_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """``tensors`` in autocast's dtype where it is on for their device, else as they are."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    return tuple(tensor.to(torch.get_autocast_dtype(device)) for tensor in tensors)


def affine(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """rows (N, D) to (N, E): the product rounded as matmuls do, the sum with the bias in fp32 (fp64 for fp64) not yet."""
    wide = torch.promote_types(rows.dtype, torch.float32)
    return (rows @ weight.t()).to(wide) + bias.to(wide)


def weight_gradient(gradient: Tensor, rows: Tensor) -> Tensor:
    """dy^T x: (N, E) and (N, D) to (E, D)."""
    if rows.dtype != torch.bfloat16 or gradient.numel() * rows.shape[1] < _LARGE:
        return gradient.t() @ rows
    return _matmul_as_laid_out(gradient.t().contiguous(), rows)


def bias_gradient(gradient: Tensor) -> Tensor:
    """(N, E) to (E,)."""
    return over_tokens(gradient.unsqueeze(0)).squeeze(0)


# Operations of their own. Of a matmul the compiler may lay out the factors as it likes, and would undo the transposition; a sum
# it would put into the loop that makes its summands, which walks columns a cache line at a time.


@torch.library.custom_op("erw::matmul_as_laid_out", mutates_args=(), tags=(torch.Tag.needs_exact_strides,))
def _matmul_as_laid_out(a: Tensor, b: Tensor) -> Tensor:
    return a @ b


@_matmul_as_laid_out.register_fake
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1])


@torch.library.custom_op("erw::over_tokens", mutates_args=(), tags=(torch.Tag.needs_exact_strides,))
def over_tokens(gradient: Tensor) -> Tensor:
    """(B, T, E) to (B, E): summed in fp32 (fp64 for fp64), rounded once."""
    return gradient.sum(dim=1)


@over_tokens.register_fake
def _(gradient: Tensor) -> Tensor:
    return gradient.new_empty(gradient.shape[0], gradient.shape[2])


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return affine(x.reshape(-1, x.shape[-1]), weight, bias).to(x.dtype).view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        gradient, rows = (t.reshape(-1, t.shape[-1]) for t in (gradient, x))
        return (gradient @ weight).view_as(x), weight_gradient(gradient, rows), bias_gradient(gradient)
