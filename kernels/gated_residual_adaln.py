"""Gated residual, then adaLN of the sum, in one pass that writes both (DiT, Sec. 3.2; between two branches of a block).

    s = x + gate_b * y                                        x, y (B, T, D); gate, shift, scale (B, D)
    n = (s - mean(s)) * r,  r = 1 / sqrt(var(s) + eps)        over D, var with divisor D
    x_new = s,  out = n * (1 + scale_b) + shift_b

    g = dout * (1 + scale_b)
    dx = dx_new + r * (g - mean(g) - n * mean(g * n)),  dy = gate_b * dx
    dgate_b = sum_t dx * y,  dscale_b = sum_t dout * n,  dshift_b = sum_t dout

Statistics and n are of s before it is rounded to x's dtype, so out is rounded once, whatever the stream's dtype. (In a
bf16 stream, a row of mean 30 would be normalised with errors of 0.04.) The backward computes s again from x and y, for no
more bytes: it reads y for dgate anyway, and x instead of x_new. In an fp32 stream the rounded sum would be the same.

Saved: x and y (someone else's tensors as a rule), not x_new; mean and r (B, T) fp32. Moves |x| + |y| + |x_new| + |out|
forward, 3|x| + 3|y| backward (x, dx_new, dx; y, dout, dy), |x| less where nothing but out was used. Arithmetic is fp32,
each result is rounded once: x_new and dx to the dtype of ``x``, out to that of ``shift``. Sums over tokens are partial sums
of strips, added in order: no atomics, twice the same bits.

Not for D above 4,096, where registers no longer hold a row's sums, nor where no adaLN follows (`gated_residual`).
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from erw.kernels._check import check_floats, check_shape, unit_last
from erw.kernels._launch import COUNTS, Rows, device_of, launch, runs_kernels
from erw.kernels._spec import Case, Inputs, Spec, telling_rows
from erw.kernels._sum import sum_partials
from erw.kernels.gated_residual import gated_residual_backward

EPS = 1e-6


def gated_residual_adaln_reference(
    x: Tensor, y: Tensor, *, gate: Tensor, shift: Tensor, scale: Tensor, eps: float = EPS
) -> tuple[Tensor, Tensor]:
    """See `gated_residual_adaln`; plain PyTorch, on any device and in any float dtype."""
    wide = torch.promote_types(torch.promote_types(x.dtype, shift.dtype), torch.float32)
    added = x.to(wide) + gate.to(wide).unsqueeze(1) * y.to(wide)
    normed = F.layer_norm(added, (x.shape[-1],), eps=eps)
    out = normed * (1 + scale.to(wide).unsqueeze(1)) + shift.to(wide).unsqueeze(1)
    return added.to(x.dtype), out.to(shift.dtype)


# Elements a thread, and rows a program to choose from. The backward holds ten values an element, so half as many.
_FORWARD = (16, (32, 16, 8))
_BACKWARD = (8, (64, 32, 16))


def _cut(width: int, batch: int, tokens: int, elements: int, lengths: tuple[int, ...]) -> Rows:
    """The longest strip that still leaves 1,024 programs, in tiles that fill 4 warps, or one row in more warps."""
    block = triton.next_power_of_2(width)
    tile = max(1, 128 * elements // block)
    warps = min(max(4, block // (32 * elements)), 16)
    length = next((n for n in lengths if batch * triton.cdiv(tokens, n) >= 1024), lengths[-1])
    return Rows(block, tile, warps, max(1, length // tile))


@triton.jit(do_not_specialize=COUNTS)
def _forward_kernel(
    x_ptr, y_ptr, gate_ptr, shift_ptr, scale_ptr, x_new_ptr, out_ptr, mean_ptr, rstd_ptr,
    gate_stride, shift_stride, scale_stride, tokens, eps,
    D: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr, STEPS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    inside = cols < D
    gate = tl.load(gate_ptr + b * gate_stride + cols, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(shift_ptr + b * shift_stride + cols, mask=inside, other=0.0).to(tl.float32)
    scale = 1.0 + tl.load(scale_ptr + b * scale_stride + cols, mask=inside, other=0.0).to(tl.float32)
    for step in tl.range(STEPS, num_stages=STAGES):
        token = (tl.program_id(1) * STEPS + step) * TILE + tl.arange(0, TILE)
        present = token < tokens
        mask = present[:, None] & inside[None, :]
        row = b * tokens + token
        place = row[:, None] * D + cols[None, :]
        x = tl.load(x_ptr + place, mask=mask, other=0.0).to(tl.float32)
        y = tl.load(y_ptr + place, mask=mask, other=0.0).to(tl.float32)
        added = x + gate[None, :] * y
        tl.store(x_new_ptr + place, added.to(x_new_ptr.dtype.element_ty), mask=mask)
        mean = tl.sum(added, axis=1) / D
        centred = tl.where(inside[None, :], added - mean[:, None], 0.0)
        rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=1) / D + eps)
        out = centred * rstd[:, None] * scale[None, :] + shift[None, :]
        tl.store(out_ptr + place, out.to(out_ptr.dtype.element_ty), mask=mask)
        tl.store(mean_ptr + row, mean, mask=present)
        tl.store(rstd_ptr + row, rstd, mask=present)


@triton.jit(do_not_specialize=COUNTS)
def _backward_kernel(
    x_ptr, y_ptr, gate_ptr, scale_ptr, dx_new_ptr, dout_ptr, mean_ptr, rstd_ptr, dx_ptr, dy_ptr,
    dgate_ptr, dshift_ptr, dscale_ptr, gate_stride, scale_stride, tokens, parts, D: tl.constexpr, BLOCK: tl.constexpr,
    TILE: tl.constexpr, STEPS: tl.constexpr, STAGES: tl.constexpr, STREAM: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    cols = tl.arange(0, BLOCK)
    inside = cols < D
    gate = tl.load(gate_ptr + b * gate_stride + cols, mask=inside, other=0.0).to(tl.float32)
    scale = 1.0 + tl.load(scale_ptr + b * scale_stride + cols, mask=inside, other=0.0).to(tl.float32)
    dgate = tl.zeros((TILE, BLOCK), tl.float32)
    dshift = tl.zeros((TILE, BLOCK), tl.float32)
    dscale = tl.zeros((TILE, BLOCK), tl.float32)
    for step in tl.range(STEPS, num_stages=STAGES):
        token = (part * STEPS + step) * TILE + tl.arange(0, TILE)
        present = token < tokens
        mask = present[:, None] & inside[None, :]
        row = b * tokens + token
        place = row[:, None] * D + cols[None, :]
        mean = tl.load(mean_ptr + row, mask=present, other=0.0)
        rstd = tl.load(rstd_ptr + row, mask=present, other=0.0)
        x = tl.load(x_ptr + place, mask=mask, other=0.0).to(tl.float32)
        y = tl.load(y_ptr + place, mask=mask, other=0.0).to(tl.float32)
        dout = tl.load(dout_ptr + place, mask=mask, other=0.0).to(tl.float32)
        # Beyond the mask normed is not 0, but y, dout and g are, and so is every term of a sum.
        normed = (x + gate[None, :] * y - mean[:, None]) * rstd[:, None]
        g = dout * scale[None, :]
        mean_g = tl.sum(g, axis=1) / D
        mean_gn = tl.sum(g * normed, axis=1) / D
        dx = rstd[:, None] * (g - mean_g[:, None] - normed * mean_gn[:, None])
        if STREAM:
            dx += tl.load(dx_new_ptr + place, mask=mask, other=0.0).to(tl.float32)
        tl.store(dx_ptr + place, dx.to(dx_ptr.dtype.element_ty), mask=mask)
        tl.store(dy_ptr + place, (gate[None, :] * dx).to(dy_ptr.dtype.element_ty), mask=mask)
        dgate += dx * y
        dshift += dout
        dscale += dout * normed
    place = (b * parts + part) * D + cols
    tl.store(dgate_ptr + place, tl.sum(dgate, axis=0), mask=inside)
    tl.store(dshift_ptr + place, tl.sum(dshift, axis=0), mask=inside)
    tl.store(dscale_ptr + place, tl.sum(dscale, axis=0), mask=inside)


def _stages(cut: Rows) -> int:
    """Tiles in flight: with 3, the next two are on their way into shared memory (64 KiB at most) while one is computed."""
    return 3 if cut.block * cut.tile <= 2048 else 1


def _forward(
    x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x_new, out, mean, rstd)."""
    batch, tokens, width = x.shape
    x, y = x.contiguous(), y.contiguous()
    gate, shift, scale = unit_last("gate", gate), unit_last("shift", shift), unit_last("scale", scale)
    x_new, out = torch.empty_like(x), torch.empty_like(x, dtype=shift.dtype)
    mean = x.new_empty((batch, tokens), dtype=torch.float32)
    rstd = torch.empty_like(mean)
    cut = _cut(width, batch, tokens, *_FORWARD)
    with device_of(x):
        launch(
            _forward_kernel, (batch, triton.cdiv(tokens, cut.rows)), x, y, gate, shift, scale, x_new, out, mean, rstd,
            gate.stride(0), shift.stride(0), scale.stride(0), tokens, eps, num_warps=cut.num_warps, D=width, BLOCK=cut.block,
            TILE=cut.tile, STEPS=cut.steps, STAGES=_stages(cut),
        )  # fmt: skip
    return x_new, out, mean, rstd


def _backward(
    x: Tensor, y: Tensor, gate: Tensor, scale: Tensor, dx_new: Tensor | None, dout: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dy, dmodulation): the gradients of gate, shift and scale as one tensor (3, B, D), which one launch sums."""
    batch, tokens, width = x.shape
    x, y, dout = x.contiguous(), y.contiguous(), dout.contiguous()
    gate, scale = unit_last("gate", gate), unit_last("scale", scale)
    stream = x if dx_new is None else dx_new.contiguous()
    dx, dy = torch.empty_like(x), torch.empty_like(y)
    cut = _cut(width, batch, tokens, *_BACKWARD)
    parts = triton.cdiv(tokens, cut.rows)
    partials = x.new_empty((3, batch, parts, width), dtype=torch.float32)
    with device_of(x):
        launch(
            _backward_kernel, (batch, parts), x, y, gate, scale, stream, dout, mean, rstd, dx, dy, *partials.unbind(),
            gate.stride(0), scale.stride(0), tokens, parts, num_warps=cut.num_warps, D=width, BLOCK=cut.block, TILE=cut.tile,
            STEPS=cut.steps, STAGES=_stages(cut), STREAM=dx_new is not None,
        )  # fmt: skip
        return dx, dy, sum_partials(partials, _shared_dtype(gate, dout, scale))


def _shared_dtype(*tensors: Tensor) -> torch.dtype:
    """That of all, or fp32 for autograd's formula to round from."""
    dtypes = {tensor.dtype for tensor in tensors}
    return dtypes.pop() if len(dtypes) == 1 else torch.float32


_forward_op = torch.library.custom_op("erw::gated_residual_adaln", _forward, mutates_args=())
_backward_op = torch.library.custom_op("erw::gated_residual_adaln_backward", _backward, mutates_args=())


@_forward_op.register_fake
def _(x, y, gate, shift, scale, eps):
    statistics = x.new_empty(x.shape[:2], dtype=torch.float32)
    return x.new_empty(x.shape), x.new_empty(x.shape, dtype=shift.dtype), statistics, torch.empty_like(statistics)


@_backward_op.register_fake
def _(x, y, gate, scale, dx_new, dout, mean, rstd):
    sums = gate.new_empty((3, *gate.shape), dtype=_shared_dtype(gate, dout, scale))
    return x.new_empty(x.shape), y.new_empty(y.shape), sums


def _save(ctx, inputs, output):
    x, y, gate, _, scale, _ = inputs
    ctx.save_for_backward(x, y, gate, scale, *output[2:])
    ctx.set_materialize_grads(False)


def _differentiate(ctx, dx_new, dout, *_):
    x, y, gate, scale, mean, rstd = ctx.saved_tensors
    if dout is None:  # nothing but x_new was used
        return dx_new, *((None, None) if dx_new is None else gated_residual_backward(y, gate, dx_new)), None, None, None
    dx, dy, (dgate, dshift, dscale) = _backward_op(x, y, gate, scale, dx_new, dout, mean, rstd)
    return dx, dy, dgate.to(gate.dtype), dshift.to(dout.dtype), dscale.to(scale.dtype), None


_forward_op.register_autograd(_differentiate, setup_context=_save)


def gated_residual_adaln(
    x: Tensor, y: Tensor, *, gate: Tensor, shift: Tensor, scale: Tensor, eps: float = EPS
) -> tuple[Tensor, Tensor]:
    """(x_new, out): x_new = x + gate * y, and its LayerNorm without affine, times (1 + scale), plus shift.

    x (B, T, D), the residual stream, y (B, T, D) and gate, shift, scale (B, D), each fp32, bf16 or fp16; rows of gate,
    shift and scale may be strided (slices of one tensor). Both results are (B, T, D): x_new in the dtype of ``x``, out in
    that of ``shift``, normalised before x_new is rounded. On a CPU (without Triton's interpreter) the plain PyTorch form
    computes them. Raises ValueError for arguments that do not fit.
    """
    check_shape("x", x, (None, None, None), "B T D")
    check_shape("y", y, tuple(x.shape), "B T D")
    for name, tensor in (("gate", gate), ("shift", shift), ("scale", scale)):
        check_shape(name, tensor, (x.shape[0], x.shape[2]), "B D")
    if not runs_kernels(x):
        return gated_residual_adaln_reference(x, y, gate=gate, shift=shift, scale=scale, eps=eps)
    check_floats(x=x, y=y, gate=gate, shift=shift, scale=scale)
    return _forward_op(x, y, gate, shift, scale, eps)[:2]


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    gate, shift, scale = torch.randn((3, case.batch, case.width), generator=generator, dtype=torch.float64) * 0.5
    x, y = (telling_rows((case.batch, case.tokens, case.width), generator) for _ in range(2))
    y -= y.mean(dim=-1, keepdim=True)  # as small as x where that is small: the sum is as telling as x
    return {"x": x, "y": y, "gate": gate, "shift": shift, "scale": scale}


def _trace(x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor) -> None:
    x_new, out, mean, rstd = _forward(x, y, gate, shift, scale, EPS)
    for dx_new in (x_new, None):
        _backward(x, y, gate, scale, dx_new, out, mean, rstd)


def _traffic(case: Case, stream: int, matmul: int) -> tuple[int, int]:
    elements = case.batch * case.tokens * case.width
    return elements * 2 * (stream + matmul), elements * 3 * (stream + matmul)


SPEC = Spec(
    name="gated_residual_adaln",
    op=gated_residual_adaln,
    reference=gated_residual_adaln_reference,
    inputs=_inputs,
    roles={"x": "stream", "y": "matmul", "gate": "matmul", "shift": "matmul", "scale": "matmul"},
    grads=("y", "gate", "x", "shift", "scale"),  # not x first: of x_new alone its gradient is dx_new itself
    reduces=("gate", "shift", "scale"),
    trace=_trace,
    traffic=_traffic,
)
