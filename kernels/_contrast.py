"""Kernels of NT-Xent losses: tokens of z told apart among tokens of a teacher's. `nt_xent_alignment` has the formula.

A problem is a set of columns and the rows that choose among them: one token of a group's images, or one image's tokens. A
program does a tile of one problem's rows against 64 columns at a time, with a running maximum and sum, as in attention.
The backward computes a tile of logits again and multiplies it with its columns, a step of D at a time. Where there are
more than 64 columns, the sum over their tiles (rows, D) is kept in fp32 in memory, a scratch for each of 256 programs.

Halves are multiplied as they are (their products are exact), and what the softmax gives is split into three halves; fp32
is multiplied in fp32, without tensor cores.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from erw.kernels._launch import INTERPRETED, device_of, launch
from erw.kernels._sum import mean_rows

EPS = 1e-12
_EPS = tl.constexpr(EPS)
_SCRATCHES = 256  # programs that keep a part of dz in memory: what a large L2 holds
# Numbers that change from call to call: no kernel of its own for a 1 or a multiple of 16.
_LOOSE = ("items", "tiles", "first_tile", "first", "rows", "group", "tokens", "stride", "problem_stride")
# What products take; Triton's interpreter has none of bf16.
_NAMES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.float32 if INTERPRETED else tl.bfloat16}


@triton.jit
def _rows(item, tiles, first_tile, first, rows, group, problem_stride, ROWS: tl.constexpr):
    """(the problem's first token, the group's first row in target, rows in the group, rows of z, whether there are, whether
    the item is the first of its group). Tiles of rows are counted from target's first row, so that none lies in two groups.
    """
    tile = first_tile + item % tiles
    a_group = tl.cdiv(group, ROWS)
    low = tile // a_group * group
    inner = tile % a_group * ROWS + tl.arange(0, ROWS)
    row = low + inner - first
    leads = (tile == first_tile) | (tile % a_group == 0)
    problem = (item // tiles).to(tl.int64) * problem_stride
    return problem, low, inner, row, (inner < group) & (row >= 0) & (row < rows), leads


@triton.jit
def _dots(
    z_ptr, target_ptr, z_token, present, target_token, known, width,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHUNK: tl.constexpr, DOT: tl.constexpr, SQUARES: tl.constexpr,
):  # fmt: skip
    """((ROWS, COLUMNS) products of z's tokens and target's; squares of both, summed over chunks, or zeros."""
    cols = tl.arange(0, CHUNK)[None, :]
    present, known = present[:, None], known[:, None]
    z_place, target_place = z_ptr + (z_token[:, None] * width + cols), target_ptr + (target_token[:, None] * width + cols)
    dots = tl.zeros((ROWS, COLUMNS), tl.float32)
    z_square, target_square = tl.zeros((ROWS, CHUNK), tl.float32), tl.zeros((COLUMNS, CHUNK), tl.float32)
    for start in range(0, width, CHUNK):
        inside = cols < width - start
        z = tl.load(z_place + start, mask=present & inside, other=0.0)
        target = tl.load(target_place + start, mask=known & inside, other=0.0)
        # Not into one accumulator, whose last bit tensor cores cut off with each addition.
        dots += tl.dot(z.to(DOT), tl.trans(target.to(DOT)), input_precision="ieee")
        if SQUARES:
            z, target = z.to(tl.float32), target.to(tl.float32)
            z_square += z * z
            target_square += target * target
    return dots, z_square, target_square


@triton.jit(do_not_specialize=_LOOSE)
def _forward_kernel(
    z_ptr, target_ptr, loss_ptr, most_ptr, others_ptr, total_ptr, z_norm_ptr, target_norm_ptr,
    tiles, first_tile, first, rows, group, tokens, stride, problem_stride, width, tau,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHUNK: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    item = tl.program_id(0)
    problem, low, inner, row, present, leads = _rows(item, tiles, first_tile, first, rows, group, problem_stride, ROWS)
    z_token = problem + row.to(tl.int64) * stride
    z_norm, most = tl.zeros((ROWS,), tl.float32), tl.full((ROWS,), float("-inf"), tl.float32)
    others, positive = tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS,), tl.float32)
    for start in range(0, group, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        known = column < group
        own = column[None, :] == inner[:, None]
        target_token = problem + (low + column).to(tl.int64) * stride
        dots, z_square, target_square = _dots(
            z_ptr, target_ptr, z_token, present, target_token, known, width, ROWS, COLUMNS, CHUNK, DOT, True
        )  # fmt: skip
        z_norm = tl.sqrt_rn(tl.sum(z_square, axis=1))
        target_norm = tl.maximum(tl.sqrt_rn(tl.sum(target_square, axis=1)), _EPS)
        logits = dots * tl.div_rn(1.0, tl.maximum(z_norm, _EPS) * tau)[:, None] * tl.div_rn(1.0, target_norm)[None, :]
        logits = tl.where(known[None, :], logits, float("-inf"))
        higher = tl.maximum(most, tl.max(logits, axis=1))
        odds = tl.where(own, 0.0, tl.exp(logits - higher[:, None]))
        others = others * tl.exp(most - higher) + tl.sum(odds, axis=1)
        most = higher
        positive += tl.sum(tl.where(own, logits, 0.0), axis=1)
        tl.store(target_norm_ptr + target_token, target_norm, mask=known & leads)
    total = others + tl.exp(positive - most)
    tl.store(loss_ptr + z_token, most - positive + tl.log(total), mask=present)
    tl.store(most_ptr + z_token, most, mask=present)
    tl.store(others_ptr + z_token, others, mask=present)
    tl.store(total_ptr + z_token, total, mask=present)
    tl.store(z_norm_ptr + z_token, z_norm, mask=present)


@triton.jit
def _weights(
    z_ptr, target_ptr, target_norm_ptr, z_token, present, target_token, known, own, most, others, total, z_factor, width,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHUNK: tl.constexpr, DOT: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """(e / |u|, or with SPLIT: it over the row's largest as a half, the halves that remain of it, each times 2,048; the
    largest; sum of e l over these columns)."""
    dots, _, _ = _dots(z_ptr, target_ptr, z_token, present, target_token, known, width, ROWS, COLUMNS, CHUNK, DOT, False)
    target_factor = tl.div_rn(1.0, tl.load(target_norm_ptr + target_token, mask=known, other=1.0))
    # Less the row's largest: e sums to 0 over the row, so that a constant may go. That it does, to the last bit, is why its
    # own column has minus the sum of the others, not p - 1: similar targets cancel to a small part of themselves.
    logits = tl.where(known[None, :], dots * z_factor[:, None] * target_factor[None, :] - most[:, None], -1e30)
    weight = tl.where(own, -others[:, None], tl.exp(logits)) * tl.div_rn(1.0, total)[:, None]
    slope = tl.sum(weight * logits, axis=1)
    weight *= target_factor[None, :]
    largest, middle, last = tl.full((ROWS,), 1.0, tl.float32), weight, weight
    if SPLIT:  # all 24 bits in three halves of 8 (bf16) or 11; scaled to the little that fp16 can hold
        largest = tl.max(tl.abs(weight), axis=1)
        largest = tl.where(largest > 0.0, largest, 1.0)
        weight *= tl.div_rn(1.0, largest)[:, None]
        half = weight.to(target_ptr.dtype.element_ty)
        rest = (weight - half.to(tl.float32)) * 2048.0
        middle = rest.to(target_ptr.dtype.element_ty)
        last = ((rest - middle.to(tl.float32)) * 2048.0).to(target_ptr.dtype.element_ty)
        weight = half
    return weight, middle, last, largest, slope


@triton.jit(do_not_specialize=_LOOSE)
def _backward_kernel(
    z_ptr, target_ptr, dout_ptr, most_ptr, others_ptr, total_ptr, z_norm_ptr, target_norm_ptr, dz_ptr, scratch_ptr,
    items, tiles, first_tile, first, rows, group, tokens, stride, problem_stride, width, tau,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHUNK: tl.constexpr, DOT: tl.constexpr,
    WEIGH: tl.constexpr, SPLIT: tl.constexpr, ONE: tl.constexpr,
):  # fmt: skip
    cols = tl.arange(0, CHUNK)[None, :]
    scratch = scratch_ptr + (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None] * width + cols
    for turn in range(0, 1 if ONE else tl.cdiv(items - tl.program_id(0), tl.num_programs(0))):
        item = tl.program_id(0) + turn * tl.num_programs(0)
        problem, low, inner, row, present, _ = _rows(item, tiles, first_tile, first, rows, group, problem_stride, ROWS)
        z_token = problem + row.to(tl.int64) * stride
        most = tl.load(most_ptr + z_token, mask=present, other=0.0)
        others = tl.load(others_ptr + z_token, mask=present, other=0.0)
        total = tl.load(total_ptr + z_token, mask=present, other=1.0)
        z_norm = tl.load(z_norm_ptr + z_token, mask=present, other=1.0)
        share = tl.load(dout_ptr + z_token // tokens, mask=present, other=0.0) / tokens
        z_clamped = tl.maximum(z_norm, _EPS)
        z_factor = tl.div_rn(1.0, z_clamped * tau)
        z_share = tl.where(z_norm >= _EPS, share / (z_clamped * z_clamped), 0.0)
        slope = tl.zeros((ROWS,), tl.float32)
        z_place = z_token[:, None] * width + cols
        for start in range(0, COLUMNS if ONE else group, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            known = column < group
            target_token = problem + (low + column).to(tl.int64) * stride
            weight, middle, last, largest, more = _weights(
                z_ptr, target_ptr, target_norm_ptr, z_token, present, target_token, known, column[None, :] == inner[:, None],
                most, others, total, z_factor, width, ROWS, COLUMNS, CHUNK, DOT, SPLIT,
            )  # fmt: skip
            slope += more
            target_place = target_token[:, None] * width + cols
            for begin in range(0, width, CHUNK):
                inside = cols < width - begin
                target = tl.load(target_ptr + target_place + begin, mask=known[:, None] & inside, other=0.0).to(WEIGH)
                if SPLIT:
                    pull = tl.dot(last.to(WEIGH), target) * (1 / 2048)
                    pull = tl.dot(middle.to(WEIGH), target, pull) * (1 / 2048)
                    pull = tl.dot(weight.to(WEIGH), target, pull) * largest[:, None]
                else:
                    pull = tl.dot(weight, target, input_precision="ieee")
                done = present[:, None] & inside
                if not ONE:  # what earlier columns gave, and for later ones
                    pull += tl.load(scratch + begin, mask=inside & (start > 0), other=0.0)
                    tl.store(scratch + begin, pull, mask=inside & (start + COLUMNS < group))
                    done &= start + COLUMNS >= group
                z = tl.load(z_ptr + z_place + begin, mask=done, other=0.0).to(tl.float32)
                dz = (share * z_factor)[:, None] * pull - (z_share * slope)[:, None] * z
                tl.store(dz_ptr + z_place + begin, dz.to(dz_ptr.dtype.element_ty), mask=done)
            if not ONE:
                tl.debug_barrier()


@dataclass(frozen=True)
class Cut:
    """Rows a program does, columns at a time, elements of D at a time, warps."""

    rows: int
    columns: int
    chunk: int
    num_warps: int


def cut_for(narrow: bool) -> Cut:
    """``narrow``: halves, which tensor cores multiply. Larger tiles spill on one chip or another."""
    return Cut(64, 64, 32, 8) if narrow else Cut(16, 64, 16, 8)


def _plan(z: Tensor, target: Tensor, first: int, group: int, in_image: bool) -> tuple[int, tuple[int, ...], Cut, dict]:
    """(items, numbers and constants that both kernels take, cut). An item is a tile of rows of a problem."""
    batch, tokens, width = z.shape
    rows, problems, *strides = (tokens, batch, 1, tokens) if in_image else (batch, tokens, tokens, 1)
    same = z.dtype == target.dtype
    cut = cut_for(same and z.dtype != torch.float32)
    a_group = triton.cdiv(group, cut.rows)
    begin, end = (r // group * a_group + r % group // cut.rows for r in (first, first + max(rows, 1) - 1))
    constants = {"ROWS": cut.rows, "COLUMNS": cut.columns, "CHUNK": cut.chunk}
    constants["DOT"] = _NAMES[z.dtype if same else torch.float32]
    tiles = end - begin + 1 if rows else 0
    return problems * tiles, (tiles, begin, first, rows, group, tokens, *strides, width), cut, constants


def contrast_forward(
    z: Tensor, target: Tensor, first: int, group: int, tau: float, in_image: bool
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Loss (B,); (4, B, N) of each row; norms of the targets that were used (W, N).

    Of a row: its largest logit, the softmax's sum without its own column and with it, its norm.

    Rows and columns are images of a group of ``group``, z's first one target's row ``first``; with ``in_image`` an image's
    tokens.
    """
    z, target = z.contiguous(), target.contiguous()
    loss, rows = z.new_empty(z.shape[:2], dtype=torch.float32), z.new_empty((4, *z.shape[:2]), dtype=torch.float32)
    target_norm = target.new_empty(target.shape[:2], dtype=torch.float32)
    items, numbers, cut, constants = _plan(z, target, first, group, in_image)
    with device_of(z):
        launch(
            _forward_kernel, (items,), z, target, loss, *rows, target_norm, *numbers, tau,
            num_warps=cut.num_warps, **constants,
        )  # fmt: skip
        return mean_rows(loss), rows, target_norm


def contrast_backward(
    z: Tensor, target: Tensor, dout: Tensor, rows: Tensor, target_norm: Tensor, first: int, group: int, tau: float,
    in_image: bool,
) -> Tensor:  # fmt: skip
    """dz of `contrast_forward`."""
    z, target, dout = z.contiguous(), target.contiguous(), dout.contiguous()
    dz = torch.empty_like(z)
    items, numbers, cut, constants = _plan(z, target, first, group, in_image)
    one = group <= cut.columns
    programs = items if one else min(items, _SCRATCHES)
    scratch = dz.new_empty((0 if one else programs * cut.rows, z.shape[2]), dtype=torch.float32)
    with device_of(z):
        launch(
            _backward_kernel, (programs,), z, target, dout, *rows, target_norm, dz, scratch, items, *numbers, tau,
            num_warps=cut.num_warps, WEIGH=_NAMES[target.dtype], SPLIT=target.dtype != torch.float32, ONE=one, **constants,
        )  # fmt: skip
    return dz


def fake_forward(z: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What `contrast_forward` returns, empty."""
    shapes = z.shape[:1], (4, *z.shape[:2]), target.shape[:2]
    return tuple(z.new_empty(shape, dtype=torch.float32) for shape in shapes)


def trace(z: Tensor, in_image: bool) -> None:
    """What the kernels run with, on halves, fp32 and both: groups of one tile of columns and of several."""
    half, full = torch.bfloat16, torch.float32
    for group in (64, 256):
        shape = (8, group, z.shape[2]) if in_image else (group, 8, z.shape[2])
        for dtypes in ((half, half), (half, full), (full, full)):
            pair = [z.new_empty(shape, dtype=dtype) for dtype in dtypes]
            out, *saved = contrast_forward(*pair, 0, group, 0.1, in_image)
            contrast_backward(*pair, out, *saved, 0, group, 0.1, in_image)
