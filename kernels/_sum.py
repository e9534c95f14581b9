"""The second half of a reduction over tokens: sums of partial sums, in a fixed order and without atomics."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from erw.kernels._launch import launch

_BLOCK = 256


@triton.jit
def _sum_partials_kernel(partials_ptr, out_ptr, parts, D: tl.constexpr, BLOCK: tl.constexpr):
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < D
    first = tl.program_id(0).to(tl.int64) * parts * D
    total = tl.zeros((BLOCK,), tl.float32)
    for part in range(parts):
        total += tl.load(partials_ptr + first + part * D + cols, mask=mask, other=0.0)
    tl.store(out_ptr + tl.program_id(0).to(tl.int64) * D + cols, total.to(out_ptr.dtype.element_ty), mask=mask)


def sum_partials(partials: Tensor, dtype: torch.dtype) -> Tensor:
    """(..., S, D) fp32 partial sums to (..., D) in ``dtype``."""
    *lead, parts, width = partials.shape
    out = partials.new_empty((*lead, width), dtype=dtype)
    grid = (out.numel() // max(width, 1), triton.cdiv(width, _BLOCK))
    launch(_sum_partials_kernel, grid, partials, out, parts, num_warps=1, D=width, BLOCK=_BLOCK)
    return out
