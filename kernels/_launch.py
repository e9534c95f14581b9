"""Launching kernels, and recording launches instead, so that what would run can be compiled for a GPU that is not there."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

INTERPRETED: bool = triton.knobs.runtime.interpret
"""Whether Triton's interpreter stands in for a GPU (TRITON_INTERPRET=1 before triton is imported)."""

COUNTS = ("tokens", "rows", "parts", "prefix")
"""Kernels' numbers that no address is a multiple of: a 1 or a multiple of 16 gets no machine code of its own."""


@dataclass(frozen=True)
class Pointer:
    """What a kernel's code depends on of a tensor: its dtype, and whether it starts at a multiple of 16 bytes."""

    dtype: torch.dtype
    aligned: bool

    @classmethod
    def of(cls, tensor: Tensor) -> "Pointer":
        """Memory itself starts at such a multiple, so the offset in it decides."""
        return cls(tensor.dtype, tensor.storage_offset() * tensor.element_size() % 16 == 0)


@dataclass(frozen=True)
class Launch:
    """One kernel launch: arguments by parameter name (tensors as pointers), grid and warps."""

    kernel: Any
    arguments: dict[str, Any]
    constants: dict[str, Any]
    grid: tuple[int, ...]
    num_warps: int


_recorder: list[Launch] | None = None


def launch(kernel, grid: tuple[int, ...], *arguments, num_warps: int, **constants) -> None:
    """Run ``kernel`` on ``grid``; nothing for an empty grid. Within `recording`, note it down instead."""
    if not all(grid):
        return
    if _recorder is None:
        kernel[grid](*arguments, num_warps=num_warps, **constants)
        return
    described = [Pointer.of(a) if isinstance(a, Tensor) else a for a in arguments]
    named = dict(zip(kernel.arg_names, described, strict=False))
    _recorder.append(Launch(kernel, named, constants, grid, num_warps))


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Within, launches are appended to the list and do not run; tensors may lie on the meta device."""
    global _recorder
    _recorder = launches = []
    try:
        yield launches
    finally:
        _recorder = None


def runs_kernels(tensor: Tensor) -> bool:
    """Whether kernels run where ``tensor`` is: on a CUDA device, or anywhere under Triton's interpreter."""
    return tensor.is_cuda or (INTERPRETED and tensor.device.type == "cpu")


@dataclass(frozen=True)
class Rows:
    """How a kernel that works on rows of ``width`` elements is cut: a tile is (tile, block) elements, of which a program
    does ``steps`` one after the other."""

    block: int
    tile: int
    num_warps: int
    steps: int = 1

    @property
    def rows(self) -> int:
        """Rows a program does."""
        return self.tile * self.steps


def row_tiles(width: int) -> Rows:
    """One tile a program: about 4,096 elements in 4 warps, which keeps eight 128-bit loads a thread in flight."""
    block = triton.next_power_of_2(width)
    return Rows(block, max(1, 4096 // block), 4 if block <= 4096 else 8)


def row_strips(width: int, batch: int, tokens: int) -> Rows:
    """Several tiles a program, for kernels that sum over tokens: the longest strip that still leaves 1,024 programs."""
    block = triton.next_power_of_2(width)
    tile, warps = max(1, 2048 // block), 4 if block <= 2048 else 8
    for length in (64, 32):
        if batch * triton.cdiv(tokens, length) >= 1024:
            break
    else:
        length = 16
    return Rows(block, tile, warps, max(1, length // tile))


def device_of(tensor: Tensor):
    """The context in which kernels for ``tensor`` are launched."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else _nowhere()


@contextmanager
def _nowhere() -> Iterator[None]:
    yield
