"""Prints, as JSON, what the survey of machine code says of kernels with planted faults, and what its shapes do not reach.

A program of its own: tests have Triton's interpreter on, which compiles nothing.
"""

import json

import torch
import triton
import triton.language as tl

from erw.bench._sources import SHAPES, Source, cases, launches_of
from erw.bench.kernel_code import inspect
from erw.kernels import SPECS, Case
from erw.kernels._launch import launch, recording


@triton.jit
def _good_kernel(x_ptr, out_ptr, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    tl.store(out_ptr + place, 2.0 * tl.load(x_ptr + place))


@triton.jit
def _atomic_kernel(x_ptr, out_ptr, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + place)
    tl.store(x_ptr + place, x)
    tl.atomic_add(out_ptr + place, x, sem="relaxed")


@triton.jit
def _spilling_kernel(x_ptr, out_ptr, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK * 8)
    x = tl.load(x_ptr + place)
    tl.store(out_ptr + place, x * tl.sum(x, axis=0))


@triton.jit
def _narrow_kernel(x_ptr, out_ptr, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    tl.store(out_ptr + place, tl.load(x_ptr + 2 * place))


@triton.jit
def _greedy_kernel(x_ptr, out_ptr, BLOCK: tl.constexpr):
    rows, cols = tl.arange(0, 16), tl.arange(0, BLOCK * 4)
    x = tl.load(x_ptr + rows[:, None] * (BLOCK * 4) + cols[None, :])
    y = tl.load(x_ptr + cols[:, None] * 16 + rows[None, :])
    tl.store(out_ptr + rows[:, None] * 16 + rows[None, :], tl.dot(x, y))


def code_faults() -> dict[str, dict[int, list[str]]]:
    """Of each kernel above, by compute capability."""
    x, out = torch.empty(1 << 20, device="meta"), torch.empty(1 << 20, device="meta")
    with recording() as launches:
        for kernel in (_good_kernel, _atomic_kernel, _spilling_kernel, _narrow_kernel, _greedy_kernel):
            launch(kernel, (1,), x, out, num_warps=1 if kernel is _spilling_kernel else 4, BLOCK=1024)
    return {source.name: {target: inspect(source, target).faults for target in (80, 90, 100)}
            for source in map(Source.of, launches)}  # fmt: skip


def unreached() -> list[str]:
    """Keys of sources, numbers' divisors aside, that other batches of the same tokens would make."""
    missing = []
    for spec in SPECS:
        reached = {_configuration(s) for case in cases("L") for s in map(Source.of, launches_of(spec, case, "mixed"))}
        for tokens in SHAPES:
            for batch in (1, 2, 8, 32, 128, 512):
                case = Case(batch=batch, tokens=tokens, width=1024, heads=16)
                found = {_configuration(s) for s in map(Source.of, launches_of(spec, case, "mixed"))}
                missing += sorted(f"{spec.name} {case}: {one}" for one in found - reached)
    return missing


def _configuration(source: Source) -> str:
    constants = source.launch.constants
    return f"{source.name} {source.launch.num_warps} {constants | {'STEPS': min(constants.get('STEPS', 0), 4)}}"


if __name__ == "__main__":
    print(json.dumps({"faults": code_faults(), "unreached": unreached()}))
