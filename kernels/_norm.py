"""Global gradient norm and the clipping that follows from it, on the device and in a fixed order of sums."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from erw.kernels._check import check_floats, dense
from erw.kernels._launch import device_of, launch, runs_kernels

_BLOCK = 4096
_PROGRAMS = 1024
_SLICE = 32768  # elements a CPU sums at a time, whatever its threads


@triton.jit
def _squares_kernel(x_ptr, partials_ptr, numel, BLOCK: tl.constexpr):
    first, programs = tl.program_id(0), tl.num_programs(0)
    cols = tl.arange(0, BLOCK)
    tiles = numel // BLOCK
    length = tl.full((), BLOCK, tl.int64)
    total = tl.zeros((BLOCK,), tl.float32)
    for tile in range(first, tiles, programs):
        x = tl.load(x_ptr + tile * length + cols).to(tl.float32)
        total += x * x
    if first == tiles % programs:
        place = tiles * length + cols
        x = tl.load(x_ptr + place, mask=place < numel, other=0.0).to(tl.float32)
        total += x * x
    tl.store(partials_ptr + first, tl.sum(total, axis=0))


@triton.jit
def _total_kernel(partials_ptr, out_ptr, parts, BLOCK: tl.constexpr):
    cols = tl.arange(0, BLOCK)
    tl.store(out_ptr, tl.sum(tl.load(partials_ptr + cols, mask=cols < parts, other=0.0), axis=0))


def sum_of_squares(grad: Tensor) -> Tensor:
    """`grad_norm_sq` by the kernels."""
    grad = grad if dense(grad) else grad.contiguous()
    parts = min(_PROGRAMS, triton.cdiv(max(1, grad.numel()), _BLOCK))
    partials, out = grad.new_empty(parts, dtype=torch.float32), grad.new_empty((), dtype=torch.float32)
    with device_of(grad):
        launch(_squares_kernel, (parts,), grad, partials, grad.numel(), num_warps=4, BLOCK=_BLOCK)
        launch(_total_kernel, (1,), partials, out, parts, num_warps=4, BLOCK=_PROGRAMS)
    return out


_squares_op = torch.library.custom_op("erw::grad_norm_sq", sum_of_squares, mutates_args=())


@_squares_op.register_fake
def _(grad):
    return grad.new_empty((), dtype=torch.float32)


def grad_norm_sq_reference(grad: Tensor) -> Tensor:
    """See `grad_norm_sq`; plain PyTorch, fp64 for fp64 gradients. The order of sums does not depend on threads."""
    wide = torch.promote_types(grad.dtype, torch.float32)
    return torch.stack([part.to(wide).square().sum() for part in grad.reshape(-1).split(_SLICE)]).sum()


@torch.no_grad()
def grad_norm_sq(grad: Tensor) -> Tensor:
    """Sum of squares of a gradient of any shape, fp32, bf16 or fp16: 0-d fp32 on its device, the same bits every time.

    NaN and inf propagate; a sum beyond fp32 (a norm above 1.8e19) is inf. Sums over ranks add these and take the root.
    Raises ValueError for other dtypes on a CUDA device.
    """
    if not runs_kernels(grad):
        return grad_norm_sq_reference(grad)
    check_floats(grad=grad)
    return _squares_op(grad)


@torch.no_grad()
def clip_coefficient(total_norm: Tensor, max_norm: float) -> tuple[Tensor, Tensor]:
    """(grad_scale, keep) for `adamw_ema` from the global norm, a 0-d tensor; the host does not wait for it.

    grad_scale is min(1, max_norm / (total_norm + 1e-6)) as in torch's clip_grad_norm_, or 1 where max_norm is 0; keep is
    1.0 where the norm is finite, else 0.0, and grad_scale then means nothing.
    """
    keep = torch.isfinite(total_norm).to(torch.float32)
    return ((max_norm / (total_norm + 1e-6)).clamp(max=1.0) if max_norm else keep), keep
