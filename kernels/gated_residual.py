"""Gated residual: a branch's output, times its gate, onto the residual stream, in one pass (DiT, Sec. 3.2).

    x_new = x + gate_b * y                                    x, y (B, T, D); gate (B, D)

    dx = dx_new (the same tensor, not a copy),  dy = gate_b * dx_new,  dgate_b = sum_t dx_new * y

Saved: y and gate, not x. Moves |x| + |y| + |x_new| forward and |dx_new| + 2|y| backward (y, dy). Arithmetic is fp32, each
result is rounded once; x_new has the dtype of ``x``, the residual stream. No sum runs over D, so a program does a block of
columns that divides D where one does: no lane idles at 1,152. Sums over tokens are partial sums of strips, added in order:
no atomics, twice the same bits.

Not where a normalisation follows: `gated_residual_adaln` does both and reads the sum once less.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from erw.kernels._check import check_floats, check_shape, unit_last
from erw.kernels._launch import COUNTS, Rows, device_of, launch, runs_kernels
from erw.kernels._spec import Case, Inputs, Spec, telling_rows
from erw.kernels._sum import sum_partials


def gated_residual_reference(x: Tensor, y: Tensor, *, gate: Tensor) -> Tensor:
    """See `gated_residual`; plain PyTorch, on any device and in any float dtype."""
    wide = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    return (x.to(wide) + gate.to(wide).unsqueeze(1) * y.to(wide)).to(x.dtype)


def _tiles(width: int) -> Rows:
    """One tile of 4,096 elements a program. Its columns: the largest power of 2 that divides D, between 128 and 1,024."""
    block = min(max(width & -width, 128), 1024)
    return Rows(block, 4096 // block, 4)


def _strips(width: int, batch: int, tokens: int) -> Rows:
    """Tiles of 2,048 elements, several a program: the longest strip that still leaves 1,024 programs."""
    block = _tiles(width).block
    tile = 2048 // block
    programs = batch * triton.cdiv(width, block)
    steps = next((n for n in (256, 128, 64) if programs * triton.cdiv(tokens, n) >= 1024), 32) // tile
    return Rows(block, tile, 4, max(1, steps))


@triton.jit(do_not_specialize=COUNTS)
def _forward_kernel(
    x_ptr, y_ptr, gate_ptr, x_new_ptr, gate_stride, tokens,
    D: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    b = (tl.program_id(0) // tl.cdiv(D, BLOCK)).to(tl.int64)
    cols = tl.program_id(0) % tl.cdiv(D, BLOCK) * BLOCK + tl.arange(0, BLOCK)
    token = tl.program_id(1) * TILE + tl.arange(0, TILE)
    mask = (token < tokens)[:, None] & (cols < D)[None, :]
    place = (b * tokens + token)[:, None] * D + cols[None, :]
    gate = tl.load(gate_ptr + b * gate_stride + cols, mask=cols < D, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + place, mask=mask, other=0.0).to(tl.float32)
    y = tl.load(y_ptr + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(x_new_ptr + place, (x + gate[None, :] * y).to(x_new_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=COUNTS)
def _backward_kernel(
    y_ptr, gate_ptr, dx_new_ptr, dy_ptr, dgate_ptr, gate_stride, tokens, parts,
    D: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    b = (tl.program_id(0) // tl.cdiv(D, BLOCK)).to(tl.int64)
    cols = tl.program_id(0) % tl.cdiv(D, BLOCK) * BLOCK + tl.arange(0, BLOCK)
    part = tl.program_id(1)
    gate = tl.load(gate_ptr + b * gate_stride + cols, mask=cols < D, other=0.0).to(tl.float32)
    dgate = tl.zeros((TILE, BLOCK), tl.float32)
    for step in range(STEPS):
        token = (part * STEPS + step) * TILE + tl.arange(0, TILE)
        mask = (token < tokens)[:, None] & (cols < D)[None, :]
        place = (b * tokens + token)[:, None] * D + cols[None, :]
        y = tl.load(y_ptr + place, mask=mask, other=0.0).to(tl.float32)
        dx_new = tl.load(dx_new_ptr + place, mask=mask, other=0.0).to(tl.float32)
        tl.store(dy_ptr + place, (gate[None, :] * dx_new).to(dy_ptr.dtype.element_ty), mask=mask)
        dgate += dx_new * y
    tl.store(dgate_ptr + (b * parts + part) * D + cols, tl.sum(dgate, axis=0), mask=cols < D)


def _forward(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    batch, tokens, width = x.shape
    x, y, gate = x.contiguous(), y.contiguous(), unit_last("gate", gate)
    x_new = torch.empty_like(x)
    cut = _tiles(width)
    with device_of(x):
        launch(
            _forward_kernel, (batch * triton.cdiv(width, cut.block), triton.cdiv(tokens, cut.tile)), x, y, gate, x_new,
            gate.stride(0), tokens, num_warps=cut.num_warps, D=width, BLOCK=cut.block, TILE=cut.tile,
        )  # fmt: skip
    return x_new


def _backward(y: Tensor, gate: Tensor, dx_new: Tensor) -> tuple[Tensor, Tensor]:
    """(dy, dgate)."""
    batch, tokens, width = y.shape
    y, dx_new, gate = y.contiguous(), dx_new.contiguous(), unit_last("gate", gate)
    dy = torch.empty_like(y)
    cut = _strips(width, batch, tokens)
    parts = triton.cdiv(tokens, cut.rows)
    dgate = y.new_empty((batch, parts, width), dtype=torch.float32)
    with device_of(y):
        launch(
            _backward_kernel, (batch * triton.cdiv(width, cut.block), parts), y, gate, dx_new, dy, dgate, gate.stride(0),
            tokens, parts, num_warps=cut.num_warps, D=width, BLOCK=cut.block, TILE=cut.tile, STEPS=cut.steps,
        )  # fmt: skip
        return dy, sum_partials(dgate, gate.dtype)


_forward_op = torch.library.custom_op("erw::gated_residual", _forward, mutates_args=())
_backward_op = torch.library.custom_op("erw::gated_residual_backward", _backward, mutates_args=())


@_forward_op.register_fake
def _(x, y, gate):
    return x.new_empty(x.shape)


@_backward_op.register_fake
def _(y, gate, dx_new):
    return y.new_empty(y.shape), gate.new_empty(gate.shape)


def _save(ctx, inputs, output):
    _, y, gate = inputs
    ctx.save_for_backward(y, gate)


def _differentiate(ctx, dx_new):
    return dx_new, *gated_residual_backward(*ctx.saved_tensors, dx_new)


_forward_op.register_autograd(_differentiate, setup_context=_save)


def gated_residual_backward(y: Tensor, gate: Tensor, dx_new: Tensor) -> tuple[Tensor, Tensor]:
    """(dy, dgate) where kernels run: the backward without dx, which is dx_new. For functions with a backward of their own."""
    return _backward_op(y, gate, dx_new)


def gated_residual(x: Tensor, y: Tensor, *, gate: Tensor) -> Tensor:
    """x + gate * y.

    x (B, T, D), the residual stream, y (B, T, D) and gate (B, D), each fp32, bf16 or fp16; rows of gate may be strided
    (slices of one tensor). Returns (B, T, D) in the dtype of ``x``. On a CPU (without Triton's interpreter) the plain
    PyTorch form computes it. Raises ValueError for arguments that do not fit.
    """
    check_shape("x", x, (None, None, None), "B T D")
    check_shape("y", y, tuple(x.shape), "B T D")
    check_shape("gate", gate, (x.shape[0], x.shape[2]), "B D")
    if not runs_kernels(x):
        return gated_residual_reference(x, y, gate=gate)
    check_floats(x=x, y=y, gate=gate)
    return _forward_op(x, y, gate)


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    shape = (case.batch, case.tokens, case.width)
    gate = torch.randn((case.batch, case.width), generator=generator, dtype=torch.float64) * 0.5
    return {"x": telling_rows(shape, generator), "y": telling_rows(shape, generator), "gate": gate}


def _trace(x: Tensor, y: Tensor, gate: Tensor) -> None:
    _backward(y, gate, _forward(x, y, gate))


def _traffic(case: Case, stream: int, matmul: int) -> tuple[int, int]:
    elements = case.batch * case.tokens * case.width
    return elements * (2 * stream + matmul), elements * (stream + 2 * matmul)


SPEC = Spec(
    name="gated_residual",
    op=gated_residual,
    reference=gated_residual_reference,
    inputs=_inputs,
    roles={"x": "stream", "y": "matmul", "gate": "matmul"},
    grads=("y", "gate", "x"),  # not x first: its gradient is dx_new itself and may well be differentiated again
    reduces=("gate",),
    trace=_trace,
    traffic=_traffic,
    cases=(Case(batch=2, tokens=40, width=264, heads=3),),  # several blocks of columns, the last one not full
)
