"""Packed qkv to q, k, v: each head of q and k normed (QK-norm) and turned (2D axial RoPE), in one pass.

    n = (x - mean(x)) * r,  r = 1 / sqrt(var(x) + eps)      "layer";     n = x * r,  r = 1 / sqrt(mean(x^2) + eps)    "rms"
    y = n * weight + bias                                   x (H,) a head of q or k; weight, bias (H,) or none
    out[2i] = y[2i] c[2i] - y[2i+1] s[2i],  out[2i+1] = y[2i+1] c[2i+1] + y[2i] s[2i+1]       c, s = rope[:, t - prefix]

    dy[2i] = dout[2i] c[2i] + dout[2i+1] s[2i+1],  dy[2i+1] = dout[2i+1] c[2i+1] - dout[2i] s[2i]
    dx = r * (g - mean(g) - n * mean(g * n)),  g = dy * weight            "rms": without mean(g)
    dweight = sum dy * n,  dbias = sum dy                                 over samples, tokens and heads

(RoFormer, Eq. 34; QK-norm: ViT-22B.) Saved: qkv, r and "layer"'s mean (2, B, T, heads) fp32; without a norm only ``rope``.
With E elements each of q, k, v, it moves 4E forward (v is a view) and 8E backward: q, k, dq, dk, dv to one packed dqkv.
Arithmetic is fp32; q and k are rounded once, at the end, and y is not rounded before. Sums over tokens are partial sums a
strip of tokens, added in order: no atomics, twice the same bits.

Not for a norm over all heads at once, nor for RoPE that pairs x[i] with x[i + H/2].
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from erw.kernels import _heads as tiles
from erw.kernels._check import check_floats, check_shape
from erw.kernels._launch import COUNTS, device_of, launch, runs_kernels
from erw.kernels._spec import Case, Inputs, Spec, telling_rows
from erw.kernels._sum import sum_partials

EPS = 1e-6
NORMS = {"none": 0, "rms": 1, "layer": 2}  # number of statistics
VECTORS = ("q_weight", "k_weight", "q_bias", "k_bias")
_LAYER = tl.constexpr(2)


def qk_norm_rope_reference(
    qkv: Tensor, *, q_weight: Tensor | None = None, q_bias: Tensor | None = None, k_weight: Tensor | None = None,
    k_bias: Tensor | None = None, norm: str = "none", rope: Tensor | None = None, eps: float = EPS, prefix: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """See `qk_norm_rope`; plain PyTorch, on any device and in any float dtype."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    if norm == "none" and rope is None:
        return q, k, v

    def one(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        y = x.to(torch.promote_types(x.dtype, torch.float32))
        if norm != "none":
            y = (F.layer_norm if norm == "layer" else F.rms_norm)(y, y.shape[-1:], eps=eps)
        y = y if weight is None else y * weight.to(y.dtype)
        y = y if bias is None else y + bias.to(y.dtype)
        if rope is not None:
            y = torch.cat((y[..., :prefix, :], tiles.turned(y[..., prefix:, :], rope)), dim=-2)
        return y.to(x.dtype)

    return one(q, q_weight, q_bias), one(k, k_weight, k_bias), v


@triton.jit(do_not_specialize=COUNTS)
def _forward_kernel(
    qkv_ptr, rope_ptr, q_weight_ptr, k_weight_ptr, q_bias_ptr, k_bias_ptr, q_ptr, k_ptr, rstd_ptr, mean_ptr,
    rows, tokens, prefix, eps, NORM: tl.constexpr, GIVEN: tl.constexpr, ROPE: tl.constexpr, HEADS: tl.constexpr,
    H: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    is_k = tl.program_id(0) % 2
    first = tl.program_id(0) // 2 * (TILE * STEPS)
    weight, weight2 = tiles.vector(tl.where(is_k == 1, k_weight_ptr, q_weight_ptr), GIVEN > 0, 1.0, H, MAIN, TAIL)
    bias, bias2 = tiles.vector(tl.where(is_k == 1, k_bias_ptr, q_bias_ptr), GIVEN > 2, 0.0, H, MAIN, TAIL)
    for step in range(tiles.steps(first, rows, TILE, STEPS, HEADS, BLOCK)):
        row, token, head, present = tiles.place(first, rows, step, TILE, HEADS, BLOCK)
        x, x2 = tiles.load(qkv_ptr, is_k, 3, row, token, head, present, HEADS, H, MAIN, TAIL)
        if ROPE:
            cos, cos2, sin, sin2 = tiles.turn(rope_ptr, row, token, tokens, prefix, H, MAIN, TAIL, TILE)
        if NORM:
            place = (is_k * rows + row).to(tl.int64) * HEADS + (token * HEADS + head)
            if NORM == _LAYER:
                mean = tiles.mean(x, x2, H, MAIN)
                tl.store(mean_ptr + place, mean, mask=present)
                x -= mean[:, None]
                x2 = tl.where(MAIN + tl.arange(0, TAIL)[None, :] < H, x2 - tiles.apart(mean), 0.0)
            rstd = 1.0 / tl.sqrt(tiles.mean(x * x, x2 * x2, H, MAIN) + eps)
            tl.store(rstd_ptr + place, rstd, mask=present)
            x, x2 = x * rstd[:, None], x2 * tiles.apart(rstd)
        if GIVEN > 0:
            x, x2 = x * weight + bias, x2 * weight2 + bias2
        if ROPE:
            x, x2 = x * cos + tiles.quarter_turn(x) * sin, x2 * cos2 + tiles.quarter_turn(x2) * sin2
        out_ptr = tl.where(is_k == 1, k_ptr, q_ptr)
        tiles.store(out_ptr, 0, 1, row, token, head, present, x, x2, HEADS, H, MAIN, TAIL)


@triton.jit(do_not_specialize=COUNTS)
def _backward_kernel(
    qkv_ptr, rope_ptr, q_weight_ptr, k_weight_ptr, dq_ptr, dk_ptr, dv_ptr, rstd_ptr, mean_ptr, dqkv_ptr, partials_ptr,
    rows, tokens, prefix, parts, NORM: tl.constexpr, GIVEN: tl.constexpr, ROPE: tl.constexpr, HEADS: tl.constexpr,
    H: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    which = tl.program_id(0) % 3
    part = tl.program_id(0) // 3
    first = part * (TILE * STEPS)
    steps = tiles.steps(first, rows, TILE, STEPS, HEADS, BLOCK)
    if which == 2:
        for step in range(steps):
            row, token, head, present = tiles.place(first, rows, step, TILE, HEADS, BLOCK)
            g, g2 = tiles.load(dv_ptr, 0, 1, row, token, head, present, HEADS, H, MAIN, TAIL)
            tiles.store(dqkv_ptr, which, 3, row, token, head, present, g, g2, HEADS, H, MAIN, TAIL)
    else:
        weight, weight2 = tiles.vector(tl.where(which == 1, k_weight_ptr, q_weight_ptr), GIVEN > 0, 1.0, H, MAIN, TAIL)
        dweight, dweight2 = tl.zeros((TILE * BLOCK, MAIN), tl.float32), tl.zeros((TILE * BLOCK, TAIL), tl.float32)
        dbias, dbias2 = tl.zeros((TILE * BLOCK, MAIN), tl.float32), tl.zeros((TILE * BLOCK, TAIL), tl.float32)
        for step in range(steps):
            row, token, head, present = tiles.place(first, rows, step, TILE, HEADS, BLOCK)
            dout_ptr = tl.where(which == 1, dk_ptr, dq_ptr)
            g, g2 = tiles.load(dout_ptr, 0, 1, row, token, head, present, HEADS, H, MAIN, TAIL)
            if NORM:
                x, x2 = tiles.load(qkv_ptr, which, 3, row, token, head, present, HEADS, H, MAIN, TAIL)
                place = (which * rows + row).to(tl.int64) * HEADS + (token * HEADS + head)
                rstd = tl.load(rstd_ptr + place, mask=present, other=0.0)[:, None]
                if NORM == _LAYER:
                    mean = tl.load(mean_ptr + place, mask=present, other=0.0)[:, None]
                    x, x2 = x - mean, x2 - mean
                x, x2 = x * rstd, x2 * rstd
            if ROPE:
                cos, cos2, sin, sin2 = tiles.turn(rope_ptr, row, token, tokens, prefix, H, MAIN, TAIL, TILE)
                g, g2 = g * cos - tiles.quarter_turn(g * sin), g2 * cos2 - tiles.quarter_turn(g2 * sin2)
            if GIVEN > 0:
                dweight, dweight2 = dweight + g * x, dweight2 + g2 * x2
                dbias, dbias2 = dbias + g, dbias2 + g2
                g, g2 = g * weight, g2 * weight2
            if NORM:
                slope = tiles.mean(g * x, g2 * x2, H, MAIN)
                if NORM == _LAYER:
                    mean_g = tiles.mean(g, g2, H, MAIN)
                    g, g2 = g - mean_g[:, None], g2 - tiles.apart(mean_g)
                g, g2 = (g - x * slope[:, None]) * rstd, (g2 - x2 * tiles.apart(slope)) * rstd
            tiles.store(dqkv_ptr, which, 3, row, token, head, present, g, g2, HEADS, H, MAIN, TAIL)
        if GIVEN > 0:
            tiles.store_sums(partials_ptr + (which * parts + part).to(tl.int64) * H, dweight, dweight2, H, MAIN, TAIL)
        if GIVEN > 2:
            tiles.store_sums(partials_ptr + ((which + 2) * parts + part).to(tl.int64) * H, dbias, dbias2, H, MAIN, TAIL)


def _results(qkv: Tensor, norm: str) -> tuple[Tensor, Tensor, Tensor]:
    """q, k (B, T, heads, H), statistics (0, 1 or 2, 2, B, T, heads): r and mean of q's heads and of k's."""
    batch, tokens, _, heads, width = qkv.shape
    q, k = (qkv.new_empty((batch, tokens, heads, width)) for _ in range(2))
    return q, k, qkv.new_empty((NORMS[norm], 2, batch, tokens, heads), dtype=torch.float32)


def _forward(
    qkv: Tensor, rope: Tensor | None, vectors: list[Tensor], norm: str, eps: float, prefix: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`_results`; ``vectors`` are VECTORS, or the first two, or none, each (H,) dense."""
    q, k, statistics = _results(qkv, norm)
    batch, tokens, heads, width = q.shape
    rows = batch * tokens
    dense = [(qkv if t is None else t).contiguous() for t in (qkv, rope)]
    cut = tiles.Heads.of(heads, width, rows, elements=1024, longest=8, programs=4096)
    with device_of(qkv):
        launch(
            _forward_kernel, (2 * triton.cdiv(rows, cut.strip),), *dense, *[*vectors, *[qkv] * 4][:4], q, k, statistics[:1],
            statistics[1:], rows, tokens, prefix, eps, num_warps=1, NORM=NORMS[norm], GIVEN=len(vectors),
            ROPE=rope is not None, **cut.constants,
        )  # fmt: skip
    return q, k, statistics


def _backward(
    qkv: Tensor | None, rope: Tensor | None, vectors: list[Tensor], statistics: Tensor, douts: list[Tensor], norm: str,
    prefix: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(dqkv, gradients of the vectors (0, 2 or 4, H)) from those of q, k, v; without a norm qkv is not needed."""
    dq, dk, dv = (dout.transpose(1, 2).contiguous() for dout in douts)
    batch, tokens, heads, width = dq.shape
    rows = batch * tokens
    dense = [(dq if t is None else t).contiguous() for t in (qkv, rope)]
    dqkv = dq.new_empty((batch, tokens, 3, heads, width))
    cut = tiles.Heads.of(heads, width, rows, elements=512, longest=16, programs=2048)
    parts = triton.cdiv(rows, cut.strip)
    if parts > 64:
        parts = triton.cdiv(parts, 256) * 256  # which `sum_partials` can group; programs past the end write zeros
    partials = dq.new_empty((len(vectors), parts, width), dtype=torch.float32)
    with device_of(dq):
        launch(
            _backward_kernel, (3 * parts,), *dense, *[*vectors, dq, dq][:2], dq, dk, dv, statistics[:1], statistics[1:], dqkv,
            partials, rows, tokens, prefix, parts, num_warps=1, NORM=NORMS[norm], GIVEN=len(vectors), ROPE=rope is not None,
            **cut.constants,
        )  # fmt: skip
        return dqkv, sum_partials(partials, (vectors or douts)[0].dtype)


_forward_op = torch.library.custom_op("erw::qk_norm_rope", _forward, mutates_args=())
_backward_op = torch.library.custom_op("erw::qk_norm_rope_backward", _backward, mutates_args=())
_forward_op.register_fake(lambda qkv, rope, vectors, norm, eps, prefix: _results(qkv, norm))


@_backward_op.register_fake
def _(qkv, rope, vectors, statistics, douts, norm, prefix):
    batch, heads, tokens, width = douts[0].shape
    return douts[0].new_empty((batch, tokens, 3, heads, width)), (vectors or douts)[0].new_empty((len(vectors), width))


class _QkNormRope(torch.autograd.Function):
    """Around the operators, which may not return v, a view of qkv. Its gradient goes into dqkv in the same pass; autograd
    alone would pad it with zeros to the size of qkv and add it."""

    @staticmethod
    def forward(ctx, qkv, rope, norm, eps, prefix, *vectors):
        q, k, statistics = _forward_op(qkv, rope, list(vectors), norm, eps, prefix)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(None if norm == "none" else qkv, rope, statistics, *vectors)
        ctx.norm, ctx.prefix = norm, prefix
        return q.transpose(1, 2), k.transpose(1, 2), qkv[:, :, 2].transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx, *douts):
        qkv, rope, statistics, *vectors = ctx.saved_tensors
        some = next(dout for dout in douts if dout is not None)
        filled = [torch.zeros_like(some) if dout is None else dout for dout in douts]
        dqkv, dvectors = _backward_op(qkv, rope, vectors, statistics, filled, ctx.norm, ctx.prefix)
        used = [None if douts[i % 2] is None else dvector for i, dvector in enumerate(dvectors.unbind())]
        return dqkv, None, None, None, None, *used


def qk_norm_rope(
    qkv: Tensor, *, q_weight: Tensor | None = None, q_bias: Tensor | None = None, k_weight: Tensor | None = None,
    k_bias: Tensor | None = None, norm: str = "none", rope: Tensor | None = None, eps: float = EPS, prefix: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Packed qkv (B, T, 3, heads, H), as one Linear leaves it, to q, k, v (B, heads, T, H) in its dtype.

    ``norm`` of each head of q and k: "none", "layer" or "rms", these two with weights (H,) or without, "layer" with biases
    (H,) too (torch's LayerNorm has eps 1e-5). ``rope`` (2, T - prefix, H) fp32, cosines and sines, turns all but the first
    ``prefix`` tokens. q and k lie in memory as (B, T, heads, H), v is a view of qkv; with neither norm nor rope nothing is
    launched. On a CPU (without Triton's interpreter) plain PyTorch computes it. ValueError for arguments that do not fit.
    """
    check_shape("qkv", qkv, (None, None, 3, None, None), "B T 3 heads H")
    tokens, width = qkv.shape[1], qkv.shape[4]
    vectors = dict(zip(VECTORS, (q_weight, k_weight, q_bias, k_bias), strict=True))
    given = {name: vector for name, vector in vectors.items() if vector is not None}
    if norm not in NORMS:
        raise ValueError(f"norm is {norm!r}, should be one of {', '.join(NORMS)}")
    allowed = [VECTORS[:count] for count in (0, 2, 4)[: NORMS[norm] + 1]]
    if tuple(given) not in allowed:
        raise ValueError(f"with norm {norm!r}, given are {tuple(given)}, should be one of {allowed}")
    for name, vector in given.items():
        check_shape(name, vector, (width,), "H")
    if rope is not None:
        if not 0 <= prefix <= tokens:
            raise ValueError(f"prefix is {prefix}, should be between 0 and T = {tokens}")
        check_shape("rope", rope, (2, tokens - prefix, width), "2 T-prefix H")
        if width % 2:
            raise ValueError(f"qkv has head width {width}, should be even for rope, which turns pairs")
    if (norm == "none" and rope is None) or not runs_kernels(qkv):
        return qk_norm_rope_reference(qkv, **vectors, norm=norm, rope=rope, eps=eps, prefix=prefix)
    check_floats(qkv=qkv, **given, **({} if rope is None else {"rope": rope}))
    return _QkNormRope.apply(qkv, rope, norm, eps, prefix, *(v.to(q_weight.dtype).contiguous() for v in given.values()))


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    width = case.width // case.heads
    rows = telling_rows((3, case.batch, case.heads, case.tokens, width), generator)
    angles = 3 * torch.randn((case.tokens, width), generator=generator, dtype=torch.float64)
    vectors = {name: torch.randn(width, generator=generator, dtype=torch.float64) for name in VECTORS}
    return {"qkv": rows.permute(1, 3, 0, 2, 4).contiguous(), **vectors, "rope": torch.stack((angles.cos(), angles.sin()))}


def _trace(qkv: Tensor, rope: Tensor, **vectors: Tensor) -> None:
    prefix = qkv.shape[1] % 2  # 257 are 1 and 256
    for norm, count, turns in (("layer", 4, True), ("layer", 4, False), ("rms", 2, True), ("none", 0, True)):
        given, table = [vectors[name] for name in VECTORS[:count]], rope[:, prefix:] if turns else None
        q, k, statistics = _forward(qkv, table, given, norm, EPS, prefix)
        _backward(qkv, table, given, statistics, [t.transpose(1, 2) for t in (q, k, q)], norm, prefix)


def _traffic(case: Case, stream: int, matmul: int) -> tuple[int, int]:
    elements, statistics = case.batch * case.tokens * case.width, 4 * case.batch * case.tokens * case.heads
    return 4 * elements * matmul + 4 * statistics, 8 * elements * matmul + 4 * statistics


SPEC = Spec(
    name="qk_norm_rope",
    op=qk_norm_rope,
    reference=qk_norm_rope_reference,
    inputs=_inputs,
    roles={"qkv": "matmul", **dict.fromkeys(VECTORS, "stream"), "rope": "float32"},
    grads=("qkv", *VECTORS),
    reduces=VECTORS,
    rows={"qkv": (2, 0, 3, 1, 4)},
    options={
        "layer-rope": {"norm": "layer"},
        "rms-rope-prefix": {"norm": "rms", "prefix": 1, "rope": lambda g: g["rope"][:, 1:], **dict.fromkeys(VECTORS[2:])},
        "rope": dict.fromkeys(VECTORS),
        "layer": {"norm": "layer", "rope": None},
    },
    trace=_trace,
    traffic=_traffic,
    cases=(Case(batch=1, tokens=7, width=84, heads=3), Case(batch=2, tokens=5, width=256, heads=2)),
)
