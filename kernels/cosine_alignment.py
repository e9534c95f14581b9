"""REPA's alignment loss: minus the cosine of two tokens, averaged over a sample's tokens (REPA, Eq. 8).

    c = z . u / (|z| |u|),  out_b = -mean_n c_bn                  z, target u (B, N, D); norms are at least 1e-12
    dz = (dout_b / N) (z (z . u) / |z|^2 - u) / (|z| |u|)         no gradient for the target

Saved: z, target (someone else's tensors as a rule), (z . u) / |z|^2 and 1 / (|z| |u|), both (B, N) fp32. Moves
|z| + |target| forward, 2|z| + |target| backward (z, dz). Arithmetic is fp32, dz is rounded once. A program does whole
tokens; the cosines are then summed over a sample's tokens in a fixed order: no atomics, twice the same bits.

Not for D above 16,384 (a row must fit into a program), nor where the target needs a gradient.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from erw.kernels._check import check_floats, check_shape
from erw.kernels._launch import COUNTS, device_of, launch, row_tiles, runs_kernels
from erw.kernels._spec import Case, Inputs, Spec, telling_rows
from erw.kernels._sum import mean_rows

EPS = 1e-12
_EPS = tl.constexpr(EPS)


def cosine_alignment_reference(z: Tensor, target: Tensor) -> Tensor:
    """See `cosine_alignment`; plain PyTorch, on any device and in any float dtype."""
    wide = torch.promote_types(torch.promote_types(z.dtype, target.dtype), torch.float32)
    return -F.cosine_similarity(z.to(wide), target.detach().to(wide), dim=-1, eps=EPS).mean(dim=-1)


@triton.jit(do_not_specialize=COUNTS)
def _forward_kernel(
    z_ptr, target_ptr, cosine_ptr, along_ptr, factor_ptr, rows,
    D: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    cols = tl.arange(0, BLOCK)
    present = row < rows
    mask = present[:, None] & (cols < D)[None, :]
    place = row[:, None] * D + cols[None, :]
    z = tl.load(z_ptr + place, mask=mask, other=0.0).to(tl.float32)
    target = tl.load(target_ptr + place, mask=mask, other=0.0).to(tl.float32)
    z_square = tl.sum(z * z, axis=1)
    z_norm, target_norm = tl.sqrt_rn(z_square), tl.sqrt_rn(tl.sum(target * target, axis=1))
    z_clamped = tl.maximum(z_norm, _EPS)
    factor = tl.div_rn(1.0, z_clamped * tl.maximum(target_norm, _EPS))
    dot = tl.sum(z * target, axis=1)
    # As torch differentiates it: the clamp changes the norm's value but not its gradient, which is 0 at 0.
    square = tl.where(z_norm >= _EPS, z_square, z_clamped * z_norm)
    along = tl.where(square > 0.0, tl.div_rn(dot, tl.where(square > 0.0, square, 1.0)), 0.0)
    tl.store(cosine_ptr + row, dot * factor, mask=present)
    tl.store(along_ptr + row, along, mask=present)
    tl.store(factor_ptr + row, factor, mask=present)


@triton.jit(do_not_specialize=COUNTS)
def _backward_kernel(
    z_ptr, target_ptr, dout_ptr, along_ptr, factor_ptr, dz_ptr, rows, tokens,
    D: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * TILE
    row = first + tl.arange(0, TILE)
    cols = tl.arange(0, BLOCK)
    present = row < rows
    mask = present[:, None] & (cols < D)[None, :]
    # Apart from the rest, which 32 bits hold: fewer registers.
    start, place = first * D, tl.arange(0, TILE)[:, None] * D + cols[None, :]
    z = tl.load(z_ptr + start + place, mask=mask, other=0.0).to(tl.float32)
    target = tl.load(target_ptr + start + place, mask=mask, other=0.0).to(tl.float32)
    share = tl.load(dout_ptr + row // tokens, mask=present, other=0.0) / tokens
    along = tl.load(along_ptr + row, mask=present, other=0.0)
    factor = tl.load(factor_ptr + row, mask=present, other=0.0)
    dz = (share * factor)[:, None] * (z * along[:, None] - target)
    tl.store(dz_ptr + start + place, dz.to(dz_ptr.dtype.element_ty), mask=mask)


def _forward(z: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(out (B,), z . u / |z|^2, 1 / (|z| |u|))."""
    batch, tokens, width = z.shape
    z, target = z.contiguous(), target.contiguous()
    cosine, along, factor = (z.new_empty((batch, tokens), dtype=torch.float32) for _ in range(3))
    cut = row_tiles(width)
    with device_of(z):
        launch(
            _forward_kernel, (triton.cdiv(batch * tokens, cut.tile),), z, target, cosine, along, factor, batch * tokens,
            num_warps=cut.num_warps, D=width, BLOCK=cut.block, TILE=cut.tile,
        )  # fmt: skip
        return mean_rows(cosine, sign=-1), along, factor


def _backward(z: Tensor, target: Tensor, dout: Tensor, along: Tensor, factor: Tensor) -> Tensor:
    batch, tokens, width = z.shape
    z, target, dout = z.contiguous(), target.contiguous(), dout.contiguous()
    dz = torch.empty_like(z)
    cut = row_tiles(width)
    with device_of(z):
        launch(
            _backward_kernel, (triton.cdiv(batch * tokens, cut.tile),), z, target, dout, along, factor, dz,
            batch * tokens, tokens, num_warps=cut.num_warps, D=width, BLOCK=cut.block, TILE=cut.tile,
        )  # fmt: skip
    return dz


_forward_op = torch.library.custom_op("erw::cosine_alignment", _forward, mutates_args=())
_backward_op = torch.library.custom_op("erw::cosine_alignment_backward", _backward, mutates_args=())


@_forward_op.register_fake
def _(z, target):
    factors = z.new_empty(z.shape[:2], dtype=torch.float32)
    return z.new_empty(z.shape[0], dtype=torch.float32), factors, torch.empty_like(factors)


@_backward_op.register_fake
def _(z, target, dout, along, factor):
    return z.new_empty(z.shape)


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs, *output[1:])
    ctx.set_materialize_grads(False)  # the statistics get none


def _differentiate(ctx, dout, *_):
    z, target, along, factor = ctx.saved_tensors
    return _backward_op(z, target, dout, along, factor), None


_forward_op.register_autograd(_differentiate, setup_context=_save)


def cosine_alignment(z: Tensor, target: Tensor) -> Tensor:
    """Minus the cosine of each token of z with the target's, averaged over a sample's tokens.

    z, target (B, N, D), any of fp32, bf16, fp16, also mixed; the target gets no gradient. Returns (B,) fp32 in [-1, 1]. On a
    CPU (without Triton's interpreter) the plain PyTorch form computes it. Raises ValueError for arguments that do not fit.
    """
    check_shape("z", z, (None, None, None), "B N D")
    check_shape("target", target, tuple(z.shape), "B N D")
    if not runs_kernels(z):
        return cosine_alignment_reference(z, target)
    check_floats(z=z, target=target)
    return _forward_op(z, target)[0]


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    shape = (case.batch, case.tokens, case.width)
    return {"z": telling_rows(shape, generator), "target": telling_rows(shape, generator)}


def _trace(z: Tensor, target: Tensor) -> None:
    out, along, factor = _forward(z, target)
    _backward(z, target, out, along, factor)


def _traffic(case: Case, stream: int, matmul: int) -> tuple[int, int]:
    elements = case.batch * case.tokens * case.width
    return elements * (stream + matmul), elements * (stream + 2 * matmul)


SPEC = Spec(
    name="cosine_alignment",
    op=cosine_alignment,
    reference=cosine_alignment_reference,
    inputs=_inputs,
    roles={"z": "matmul", "target": "stream"},
    grads=("z",),
    trace=_trace,
    traffic=_traffic,
)
