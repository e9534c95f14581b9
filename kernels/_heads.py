"""Tiles of heads, for kernels that work along a head's width H.

A tile is (rows, columns), a row a head of a token. A head of 72 is two of them, 64 and 8 columns wide: padded to 128 it
would take nearly twice the instructions, and more time than the memory needs. Where H is a power of two the second tile
holds nothing, and what is computed with it falls away.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from erw.kernels._launch import INTERPRETED


@dataclass(frozen=True)
class Heads:
    """How a program of one warp is cut: ``steps`` tiles of ``tile`` tokens' ``block`` heads' ``main`` columns and ``tail``
    more."""

    heads: int
    width: int
    block: int
    main: int
    tail: int
    tile: int
    steps: int

    @classmethod
    def of(cls, heads: int, width: int, tokens: int, *, elements: int, longest: int, programs: int) -> "Heads":
        """Tiles of at most ``elements``, of one token unless its heads are few and small, because tokens of one tile load
        the rotation once a head; the longest strip, up to ``longest`` tiles, that leaves so many ``programs``."""
        main = 1 << (width.bit_length() - 1)
        block = min(triton.next_power_of_2(heads), max(1, elements // main))
        tile = max(1, 256 // (main * block))
        if INTERPRETED:  # whose time goes by the operation, not by the element
            tile, programs = tile if tokens <= 8 else 64, 2
        while longest > 1 and tokens < longest * tile * programs:
            longest //= 2
        return cls(heads, width, block, main, max(2, triton.next_power_of_2(width - main)), tile, longest)

    @property
    def strip(self) -> int:
        """Tokens a program does."""
        return self.tile * self.steps

    @property
    def constants(self) -> dict[str, int]:
        """By the kernels' parameter names."""
        shape = {"HEADS": self.heads, "H": self.width, "MAIN": self.main, "TAIL": self.tail}
        return shape | {"BLOCK": self.block, "TILE": self.tile, "STEPS": self.steps}


@triton.jit
def steps(first, rows, TILE: tl.constexpr, STEPS: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr):
    """How many tiles a program does that starts at token ``first`` of ``rows``."""
    return tl.minimum(tl.cdiv(rows - first, TILE), STEPS) * ((HEADS + BLOCK - 1) // BLOCK)


@triton.jit
def place(first, rows, step, TILE: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr):
    """A tile's first token; the tokens of its rows from there, their heads, and which rows there are."""
    blocks: tl.constexpr = (HEADS + BLOCK - 1) // BLOCK
    row = first + step // blocks * TILE
    each = tl.arange(0, TILE * BLOCK)
    token, head = each // BLOCK, step % blocks * BLOCK + each % BLOCK
    return row, token, head, (token < rows - row) & (head < HEADS)


@triton.jit
def load(
    ptr, slot, SLOTS: tl.constexpr, row, token, head, present,
    HEADS: tl.constexpr, H: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """fp32 tiles of a tensor (rows, SLOTS, HEADS, H) at ``slot``: the first columns and the others, 0 where there are none."""
    ptr += (row.to(tl.int64) * SLOTS + slot) * (HEADS * H)
    place = (token * (SLOTS * HEADS * H) + head * H)[:, None]
    x = tl.load(ptr + (place + tl.arange(0, MAIN)[None, :]), mask=present[:, None], other=0.0).to(tl.float32)
    if MAIN < H:
        cols = MAIN + tl.arange(0, TAIL)[None, :]
        return x, tl.load(ptr + (place + cols), mask=present[:, None] & (cols < H), other=0.0).to(tl.float32)
    else:
        return x, tl.zeros((1, TAIL), tl.float32)


@triton.jit
def store(
    ptr, slot, SLOTS: tl.constexpr, row, token, head, present, x, x2,
    HEADS: tl.constexpr, H: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """Both tiles where `load` has them, rounded to the dtype of ``ptr``."""
    ptr += (row.to(tl.int64) * SLOTS + slot) * (HEADS * H)
    place = (token * (SLOTS * HEADS * H) + head * H)[:, None]
    tl.store(ptr + (place + tl.arange(0, MAIN)[None, :]), x.to(ptr.dtype.element_ty), mask=present[:, None])
    if MAIN < H:
        cols = MAIN + tl.arange(0, TAIL)[None, :]
        tl.store(ptr + (place + cols), x2.to(ptr.dtype.element_ty), mask=present[:, None] & (cols < H))


@triton.jit
def vector(ptr, given, DEFAULT: tl.constexpr, H: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr):
    """fp32 (1, columns) of a vector (H,), or DEFAULT everywhere where it is not given."""
    cols = MAIN + tl.arange(0, TAIL)
    x = tl.load(ptr + tl.arange(0, MAIN), mask=given, other=DEFAULT).to(tl.float32)
    x2 = tl.load(ptr + cols, mask=given & (cols < H), other=DEFAULT).to(tl.float32)
    return x[None, :], x2[None, :]


@triton.jit
def turn(rope_ptr, row, token, tokens, prefix, H: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr, TILE: tl.constexpr):
    """Cosines of both tiles, sines of both, from a table (2, tokens - prefix, H); those of no turn for the prefix. A tile of
    one token has one row of them."""
    sin_ptr = rope_ptr + (tokens - prefix) * H
    if TILE == 1:
        position = row % tokens - prefix
        cos, cos2 = vector(rope_ptr + position * H, position >= 0, 1.0, H, MAIN, TAIL)
        sin, sin2 = vector(sin_ptr + position * H, position >= 0, 0.0, H, MAIN, TAIL)
    else:
        position = ((row + token) % tokens - prefix)[:, None]
        place = position * H + tl.arange(0, MAIN)[None, :]
        place2 = position * H + MAIN + tl.arange(0, TAIL)[None, :]
        mask2 = (position >= 0) & (MAIN + tl.arange(0, TAIL) < H)[None, :]
        cos = tl.load(rope_ptr + place, mask=position >= 0, other=1.0).to(tl.float32)
        sin = tl.load(sin_ptr + place, mask=position >= 0, other=0.0).to(tl.float32)
        cos2 = tl.load(rope_ptr + place2, mask=mask2, other=1.0).to(tl.float32)
        sin2 = tl.load(sin_ptr + place2, mask=mask2, other=0.0).to(tl.float32)
    return cos, cos2, sin, sin2


@triton.jit
def store_sums(ptr, x, x2, H: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr):
    """Sums over rows to a vector (H,)."""
    cols = MAIN + tl.arange(0, TAIL)
    tl.store(ptr + tl.arange(0, MAIN), tl.sum(x, axis=0))
    tl.store(ptr + cols, tl.sum(x2, axis=0), mask=cols < H)


@triton.jit
def mean(x, x2, H: tl.constexpr, MAIN: tl.constexpr):
    """(rows,): the mean over both tiles' columns."""
    total = tl.sum(x, axis=1)
    if MAIN < H:
        total += tl.gather(tl.sum(x2, axis=1), tl.arange(0, x.shape[0]), 0)  # see `apart`
    return total / H


@triton.jit
def apart(x):
    """(rows, 1) of x (rows,). The gather stops the layout of one tile, which suits its loads, from being taken for the
    other tile."""
    return tl.gather(x, tl.arange(0, x.shape[0]), 0)[:, None]


@triton.jit
def quarter_turn(x):
    """(-x[2i+1], x[2i]) of each pair."""
    even, odd = tl.split(tl.reshape(x, (x.shape[0], x.shape[1] // 2, 2)))
    return tl.reshape(tl.join(-odd, even), x.shape)


def turned(x: Tensor, table: Tensor) -> Tensor:
    """The reference: pairs (x[2i], x[2i+1]) of (..., T, H) turned by the angles of ``table`` (2, T, H)."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return x * table[0] + torch.stack((-odd, even), dim=-1).flatten(-2) * table[1]
