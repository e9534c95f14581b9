"""The second half of a reduction over tokens: sums of partial sums, in a fixed order and without atomics."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from erw.kernels._launch import COUNTS, launch

_BLOCK = 256
_GROUP = 16
_MEAN = 512


@triton.jit(do_not_specialize=COUNTS)
def _sum_partials_kernel(partials_ptr, out_ptr, parts, D: tl.constexpr, BLOCK: tl.constexpr):
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < D
    first = tl.program_id(0).to(tl.int64) * parts * D
    total = tl.zeros((BLOCK,), tl.float32)
    for part in range(parts):
        total += tl.load(partials_ptr + first + part * D + cols, mask=mask, other=0.0)
    tl.store(out_ptr + tl.program_id(0).to(tl.int64) * D + cols, total.to(out_ptr.dtype.element_ty), mask=mask)


def sum_partials(partials: Tensor, dtype: torch.dtype) -> Tensor:
    """(..., S, D) fp32 partial sums to (..., D) in ``dtype``. Many of them are first summed in groups of 16."""
    *lead, parts, width = partials.shape
    if parts > 64 and parts % _GROUP == 0:
        return sum_partials(sum_partials(partials.view(*lead, parts // _GROUP, _GROUP, width), torch.float32), dtype)
    out = partials.new_empty((*lead, width), dtype=dtype)
    grid = (out.numel() // max(width, 1), triton.cdiv(width, _BLOCK))
    launch(_sum_partials_kernel, grid, partials, out, parts, num_warps=1, D=width, BLOCK=_BLOCK)
    return out


@triton.jit
def _mean_rows_kernel(values_ptr, out_ptr, columns, factor, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, columns, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        total += tl.load(values_ptr + row * columns + cols, mask=cols < columns, other=0.0)
    tl.store(out_ptr + row, tl.sum(total, axis=0) * factor)


def mean_rows(values: Tensor, *, count: int | None = None, sign: int = 1) -> Tensor:
    """(B, S) fp32 to (B,) fp32: ``sign`` times a row's sum over ``count`` (S by default), in a fixed order."""
    rows, columns = values.shape
    out = values.new_empty(rows)
    block = min(triton.next_power_of_2(max(columns, 1)), _MEAN)
    factor = sign / max(count or columns, 1)
    launch(_mean_rows_kernel, (rows,), values, out, columns, factor, num_warps=1, BLOCK=block)
    return out
