"""adaLN: LayerNorm without affine, then modulation, in one pass over x (DiT, Sec. 3.2).

    n = (x - mean(x)) * r,  r = 1 / sqrt(var(x) + eps)        over D, var with divisor D
    out = n * (1 + scale_b) + shift_b                         x (B, T, D); shift, scale (B, D)

    g = dout * (1 + scale_b)
    dx = r * (g - mean(g) - n * mean(g * n))
    dscale_b = sum_t dout * n,  dshift_b = sum_t dout

Saved: x (someone else's tensor as a rule), mean and r (B, T) fp32. Moves |x| + |out| forward and 2|x| + |dout| backward
(x, dx). Arithmetic is fp32, each result is rounded once; out has the dtype of ``shift``. Sums over tokens are partial sums
a strip of tokens, added in order: no atomics, twice the same bits.

Not for D above 16,384 (a row must fit into a program), nor where torch.compile already fuses the neighbours of a small x.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from erw.kernels._check import check_floats, check_shape, unit_last
from erw.kernels._launch import COUNTS, device_of, launch, row_strips, row_tiles, runs_kernels
from erw.kernels._spec import Case, Inputs, Spec, telling_rows
from erw.kernels._sum import sum_partials

EPS = 1e-6


def adaln_modulate_reference(x: Tensor, *, shift: Tensor, scale: Tensor, eps: float = EPS) -> Tensor:
    """See `adaln_modulate`; plain PyTorch, on any device and in any float dtype."""
    wide = torch.promote_types(torch.promote_types(x.dtype, shift.dtype), torch.float32)
    normed = F.layer_norm(x.to(wide), (x.shape[-1],), eps=eps)
    return (normed * (1 + scale.to(wide).unsqueeze(1)) + shift.to(wide).unsqueeze(1)).to(shift.dtype)


@triton.jit(do_not_specialize=COUNTS)
def _forward_kernel(
    x_ptr, shift_ptr, scale_ptr, out_ptr, mean_ptr, rstd_ptr, shift_stride, scale_stride, tokens, eps,
    D: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    token = tl.program_id(1) * TILE + tl.arange(0, TILE)
    cols = tl.arange(0, BLOCK)
    inside = cols < D
    mask = (token < tokens)[:, None] & inside[None, :]
    first = b * tokens  # apart from the rest, which 32 bits hold: fewer registers
    place = token[:, None] * D + cols[None, :]
    x = tl.load(x_ptr + first * D + place, mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(x, axis=1) / D
    centred = tl.where(inside[None, :], x - mean[:, None], 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=1) / D + eps)
    scale = tl.load(scale_ptr + b * scale_stride + cols, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(shift_ptr + b * shift_stride + cols, mask=inside, other=0.0).to(tl.float32)
    out = centred * rstd[:, None] * (1.0 + scale)[None, :] + shift[None, :]
    tl.store(out_ptr + first * D + place, out.to(out_ptr.dtype.element_ty), mask=mask)
    tl.store(mean_ptr + first + token, mean, mask=token < tokens)
    tl.store(rstd_ptr + first + token, rstd, mask=token < tokens)


@triton.jit(do_not_specialize=COUNTS)
def _backward_kernel(
    x_ptr, shift_ptr, scale_ptr, dout_ptr, mean_ptr, rstd_ptr, dx_ptr, again_ptr, dscale_ptr, dshift_ptr,
    shift_stride, scale_stride, tokens, parts,
    D: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr, STEPS: tl.constexpr, AGAIN: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    cols = tl.arange(0, BLOCK)
    inside = cols < D
    scale = 1.0 + tl.load(scale_ptr + b * scale_stride + cols, mask=inside, other=0.0).to(tl.float32)
    dscale = tl.zeros((BLOCK,), tl.float32)
    dshift = tl.zeros((BLOCK,), tl.float32)
    for step in range(STEPS):
        token = (part * STEPS + step) * TILE + tl.arange(0, TILE)
        present = token < tokens
        mask = present[:, None] & inside[None, :]
        row = b * tokens + token
        place = row[:, None] * D + cols[None, :]
        mean = tl.load(mean_ptr + row, mask=present, other=0.0)
        rstd = tl.load(rstd_ptr + row, mask=present, other=0.0)
        x = tl.load(x_ptr + place, mask=mask, other=0.0).to(tl.float32)
        dout = tl.load(dout_ptr + place, mask=mask, other=0.0).to(tl.float32)
        normed = tl.where(mask, (x - mean[:, None]) * rstd[:, None], 0.0)
        g = dout * scale[None, :]
        mean_g = tl.sum(g, axis=1) / D
        mean_gn = tl.sum(g * normed, axis=1) / D
        dx = rstd[:, None] * (g - mean_g[:, None] - normed * mean_gn[:, None])
        tl.store(dx_ptr + place, dx.to(dx_ptr.dtype.element_ty), mask=mask)
        if AGAIN:
            shift = tl.load(shift_ptr + b * shift_stride + cols, mask=inside, other=0.0).to(tl.float32)
            out = normed * scale[None, :] + shift[None, :]
            tl.store(again_ptr + place, out.to(again_ptr.dtype.element_ty), mask=mask)
        dscale += tl.sum(dout * normed, axis=0)
        dshift += tl.sum(dout, axis=0)
    place = (b * parts + part) * D + cols
    tl.store(dscale_ptr + place, dscale, mask=inside)
    tl.store(dshift_ptr + place, dshift, mask=inside)


def _forward(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(out, mean, rstd)."""
    batch, tokens, width = x.shape
    x, shift, scale = x.contiguous(), unit_last("shift", shift), unit_last("scale", scale)
    out = torch.empty_like(x, dtype=shift.dtype)
    mean = x.new_empty((batch, tokens), dtype=torch.float32)
    rstd = torch.empty_like(mean)
    cut = row_tiles(width)
    with device_of(x):
        launch(
            _forward_kernel, (batch, triton.cdiv(tokens, cut.tile)), x, shift, scale, out, mean, rstd, shift.stride(0),
            scale.stride(0), tokens, eps, num_warps=cut.num_warps, D=width, BLOCK=cut.block, TILE=cut.tile,
        )  # fmt: skip
    return out, mean, rstd


def _backward(
    x: Tensor, shift: Tensor, scale: Tensor, dout: Tensor, mean: Tensor, rstd: Tensor, again: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dx, dshift, dscale, the output anew or an empty tensor)."""
    batch, tokens, width = x.shape
    x, dout = x.contiguous(), dout.contiguous()
    shift, scale = unit_last("shift", shift), unit_last("scale", scale)
    dx, out = torch.empty_like(x), torch.empty_like(dout) if again else dout.new_empty(0)
    cut = row_strips(width, batch, tokens)
    parts = triton.cdiv(tokens, cut.rows)
    dscale, dshift = x.new_empty((2, batch, parts, width), dtype=torch.float32).unbind()
    with device_of(x):
        launch(
            _backward_kernel, (batch, parts), x, shift, scale, dout, mean, rstd, dx, out, dscale, dshift, shift.stride(0),
            scale.stride(0), tokens, parts, num_warps=cut.num_warps, D=width, BLOCK=cut.block, TILE=cut.tile,
            STEPS=cut.steps, AGAIN=again,
        )  # fmt: skip
        return dx, sum_partials(dshift, shift.dtype), sum_partials(dscale, scale.dtype), out


_forward_op = torch.library.custom_op("erw::adaln_modulate", _forward, mutates_args=())
_backward_op = torch.library.custom_op("erw::adaln_modulate_backward", _backward, mutates_args=())


@_forward_op.register_fake
def _(x, shift, scale, eps):
    statistics = x.new_empty(x.shape[:2], dtype=torch.float32)
    return x.new_empty(x.shape, dtype=shift.dtype), statistics, torch.empty_like(statistics)


@_backward_op.register_fake
def _(x, shift, scale, dout, mean, rstd, again):
    out = dout.new_empty(dout.shape if again else 0)
    return x.new_empty(x.shape), shift.new_empty(shift.shape), scale.new_empty(scale.shape), out


def _save(ctx, inputs, output):
    x, shift, scale, _ = inputs
    _, mean, rstd = output
    ctx.save_for_backward(x, shift, scale, mean, rstd)
    ctx.set_materialize_grads(False)  # the statistics get none


def _differentiate(ctx, dout, *_):
    x, shift, scale, mean, rstd = ctx.saved_tensors
    dx, dshift, dscale, _ = _backward_op(x, shift, scale, dout, mean, rstd, False)
    return dx, dshift, dscale, None


_forward_op.register_autograd(_differentiate, setup_context=_save)


def adaln_modulate(x: Tensor, *, shift: Tensor, scale: Tensor, eps: float = EPS) -> Tensor:
    """LayerNorm of x without affine, times (1 + scale), plus shift.

    x (B, T, D); shift, scale (B, D), any of fp32, bf16, fp16; rows of shift and scale may be strided (slices of one
    tensor). Returns (B, T, D) in the dtype of ``shift``. On a CPU (without Triton's interpreter) the plain PyTorch form
    computes it. Raises ValueError for arguments that do not fit.
    """
    check_shape("x", x, (None, None, None), "B T D")
    for name, tensor in (("shift", shift), ("scale", scale)):
        check_shape(name, tensor, (x.shape[0], x.shape[2]), "B D")
    if not runs_kernels(x):
        return adaln_modulate_reference(x, shift=shift, scale=scale, eps=eps)
    check_floats(x=x, shift=shift, scale=scale)
    return _forward_op(x, shift, scale, eps)[0]


def adaln_statistics(x: Tensor, shift: Tensor, scale: Tensor, eps: float = EPS) -> tuple[Tensor, Tensor, Tensor]:
    """(out, mean (B, T) fp32, rstd (B, T) fp32), without autograd, for functions with a backward of their own."""
    if runs_kernels(x):
        return _forward_op(x, shift, scale, eps)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    rstd = (wide.var(dim=-1, correction=0) + eps).rsqrt()
    return adaln_modulate_reference(x, shift=shift, scale=scale, eps=eps), wide.mean(dim=-1), rstd


def adaln_again(
    x: Tensor, shift: Tensor, scale: Tensor, dout: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dx, dshift, dscale, out): the backward that also gives what the forward gave, in the same pass."""
    if runs_kernels(x):
        return _backward_op(x, shift, scale, dout, mean, rstd, True)
    wide = torch.promote_types(x.dtype, torch.float32)
    normed, dwide = (x.to(wide) - mean.unsqueeze(-1)) * rstd.unsqueeze(-1), dout.to(wide)
    factor = 1 + scale.to(wide).unsqueeze(1)
    g = dwide * factor
    dx = rstd.unsqueeze(-1) * (g - g.mean(dim=-1, keepdim=True) - normed * (g * normed).mean(dim=-1, keepdim=True))
    out = (normed * factor + shift.to(wide).unsqueeze(1)).to(dout.dtype)
    return dx.to(x.dtype), dwide.sum(dim=1).to(shift.dtype), (dwide * normed).sum(dim=1).to(scale.dtype), out


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    modulation = torch.randn((2, case.batch, case.width), generator=generator, dtype=torch.float64) * 0.5
    x = telling_rows((case.batch, case.tokens, case.width), generator)
    return {"x": x, "shift": modulation[0], "scale": modulation[1]}


def _trace(x: Tensor, shift: Tensor, scale: Tensor) -> None:
    out, mean, rstd = _forward(x, shift, scale, EPS)
    for again in (False, True):
        _backward(x, shift, scale, out, mean, rstd, again)


def _traffic(case: Case, stream: int, matmul: int) -> tuple[int, int]:
    elements = case.batch * case.tokens * case.width
    return elements * (stream + matmul), elements * (2 * stream + matmul)


SPEC = Spec(
    name="adaln_modulate",
    op=adaln_modulate,
    reference=adaln_modulate_reference,
    inputs=_inputs,
    roles={"x": "stream", "shift": "matmul", "scale": "matmul"},
    grads=("x", "shift", "scale"),
    reduces=("shift", "scale"),
    trace=_trace,
    traffic=_traffic,
)
