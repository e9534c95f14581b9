"""Bias and GELU (tanh approximation) in one pass, forward and backward (DiT's MLP).

    u = x + bias,  a = u * s,  s = sigmoid(2 sqrt(2 / pi) (u + 0.044715 u^3))       = 0.5 u (1 + tanh(...))
    dx = dout * (s + u s (1 - s) * 2 sqrt(2 / pi) (1 + 3 * 0.044715 u^2)),  dbias = sum of dx over rows

x (..., N); bias (N,) or None. Saved: x and bias, not the activation. Moves 2|x| forward, 3|x| backward; `bias_gelu_again`
writes the activation anew within the backward's pass (4|x|), for functions that did not keep it. The sum over rows is
partial sums of strips, added in order.

Not where a GEMM's epilogue can do it and the pre-activation is not needed again (inference).
"""

import math

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from erw.kernels._check import check_floats, check_shape
from erw.kernels._launch import COUNTS, device_of, launch, runs_kernels
from erw.kernels._spec import Case, Inputs, Spec
from erw.kernels._sum import sum_partials

_SLOPE = tl.constexpr(2 * math.sqrt(2 / math.pi))
_CUBIC = tl.constexpr(0.044715)
_WARPS = 4
_PARTS = 128  # strips of rows at most: 5 column blocks of XL's 4,608 make 640 programs
_STEPS = 4  # tiles of a strip at least: with fewer the loop is unrolled, which spills on one chip or another


def bias_gelu_reference(x: Tensor, *, bias: Tensor | None = None) -> Tensor:
    """See `bias_gelu`; plain PyTorch, on any device and in any float dtype."""
    wide = torch.promote_types(x.dtype, torch.float32)
    shifted = x.to(wide) if bias is None else x.to(wide) + bias.to(wide)
    return F.gelu(shifted, approximate="tanh").to(x.dtype)


@triton.jit
def _gate(u):
    """(s, 1 - s), each to full precision: 1 - s by subtraction would lose what large u multiply."""
    z = (u + u * u * u * _CUBIC) * _SLOPE
    small = tl.exp(-tl.abs(z))
    large = 1.0 / (1.0 + small)
    small = small * large
    return tl.where(z >= 0, large, small), tl.where(z >= 0, small, large)


@triton.jit(do_not_specialize=COUNTS)
def _forward_kernel(x_ptr, bias_ptr, out_ptr, rows, N: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = (row < rows)[:, None] & (cols < N)[None, :]
    place = row[:, None] * N + cols[None, :]
    u = tl.load(x_ptr + place, mask=mask, other=0.0).to(tl.float32)
    u += tl.load(bias_ptr + cols, mask=cols < N, other=0.0).to(tl.float32)[None, :]
    s, _ = _gate(u)
    tl.store(out_ptr + place, (u * s).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=COUNTS)
def _backward_kernel(
    x_ptr, bias_ptr, dout_ptr, dx_ptr, again_ptr, dbias_ptr, rows,
    N: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr, STEPS: tl.constexpr, AGAIN: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = cols < N
    bias = tl.load(bias_ptr + cols, mask=inside, other=0.0).to(tl.float32)[None, :]
    dbias = tl.zeros((BLOCK,), tl.float32)
    for step in range(STEPS):
        row = (part * STEPS + step) * TILE + tl.arange(0, TILE)
        mask = (row < rows)[:, None] & inside[None, :]
        place = row[:, None] * N + cols[None, :]
        u = tl.load(x_ptr + place, mask=mask, other=0.0).to(tl.float32) + bias
        dout = tl.load(dout_ptr + place, mask=mask, other=0.0).to(tl.float32)
        s, rest = _gate(u)
        dx = dout * (s + u * s * rest * ((1.0 + u * u * 3.0 * _CUBIC) * _SLOPE))
        tl.store(dx_ptr + place, dx.to(dx_ptr.dtype.element_ty), mask=mask)
        if AGAIN:
            tl.store(again_ptr + place, (u * s).to(again_ptr.dtype.element_ty), mask=mask)
        dbias += tl.sum(dx, axis=0)
    tl.store(dbias_ptr + part * N + cols, dbias, mask=inside)


def _tile(width: int) -> tuple[int, int]:
    """(columns, rows) of a tile: about 4,096 elements, at most 1,024 columns."""
    block = min(1024, triton.next_power_of_2(width))
    return block, 4096 // block


def _forward(x: Tensor, bias: Tensor) -> Tensor:
    x, bias = x.contiguous(), bias.contiguous()
    out = torch.empty_like(x)
    width = x.shape[-1]
    rows = x.numel() // max(width, 1)
    block, tile = _tile(width)
    with device_of(x):
        launch(
            _forward_kernel, (triton.cdiv(rows, tile), triton.cdiv(width, block)), x, bias, out, rows, num_warps=_WARPS,
            N=width, BLOCK=block, TILE=tile,
        )  # fmt: skip
    return out


def _backward(x: Tensor, bias: Tensor, dout: Tensor, again: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dbias, the activation anew or an empty tensor)."""
    x, bias, dout = x.contiguous(), bias.contiguous(), dout.contiguous()
    width = x.shape[-1]
    rows = x.numel() // max(width, 1)
    block, tile = _tile(width)
    steps = max(_STEPS, triton.next_power_of_2(triton.cdiv(rows, _PARTS * tile)))
    parts = triton.cdiv(rows, steps * tile)
    dx, activation = torch.empty_like(x), torch.empty_like(x) if again else x.new_empty(0)
    partials = x.new_empty((parts, width), dtype=torch.float32)
    with device_of(x):
        launch(
            _backward_kernel, (parts, triton.cdiv(width, block)), x, bias, dout, dx, activation, partials, rows,
            num_warps=_WARPS, N=width, BLOCK=block, TILE=tile, STEPS=steps, AGAIN=again,
        )  # fmt: skip
        return dx, sum_partials(partials, bias.dtype), activation


_forward_op = torch.library.custom_op("erw::bias_gelu", _forward, mutates_args=())
_backward_op = torch.library.custom_op("erw::bias_gelu_backward", _backward, mutates_args=())


@_forward_op.register_fake
def _(x, bias):
    return x.new_empty(x.shape)


@_backward_op.register_fake
def _(x, bias, dout, again):
    return x.new_empty(x.shape), bias.new_empty(bias.shape), x.new_empty(x.shape if again else 0)


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, dout):
    dx, dbias, _ = _backward_op(*ctx.saved_tensors, dout, False)
    return dx, dbias


_forward_op.register_autograd(_differentiate, setup_context=_save)


def bias_gelu(x: Tensor, *, bias: Tensor | None = None) -> Tensor:
    """GELU (tanh) of x + bias.

    x (..., N) and bias (N,), any of fp32, bf16, fp16. Returns (..., N) in the dtype of x. On a CPU (without Triton's
    interpreter) the plain PyTorch form computes it. Raises ValueError for arguments that do not fit.
    """
    if x.dim() < 2:
        raise ValueError(f"x has shape {tuple(x.shape)}, should be (..., N) with at least two dimensions")
    bias = x.new_zeros(x.shape[-1]) if bias is None else bias
    check_shape("bias", bias, (x.shape[-1],), "N")
    if not runs_kernels(x):
        return bias_gelu_reference(x, bias=bias)
    check_floats(x=x, bias=bias)
    return _forward_op(x, bias)


def bias_gelu_again(x: Tensor, bias: Tensor, dout: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dbias, activation): the backward of `bias_gelu` that also gives what the forward gave, in the same pass.

    Where kernels do not run, plain PyTorch computes the same.
    """
    if runs_kernels(x):
        return _backward_op(x, bias, dout, True)
    with torch.enable_grad():
        inputs = x.detach().requires_grad_(), bias.detach().requires_grad_()
        out = bias_gelu_reference(inputs[0], bias=inputs[1])
    return *torch.autograd.grad(out, inputs, dout), out.detach()


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    x = 2 * torch.randn((case.batch, case.tokens, 4 * case.width), generator=generator, dtype=torch.float64)
    return {"x": x, "bias": torch.randn(4 * case.width, generator=generator, dtype=torch.float64)}


def _trace(x: Tensor, bias: Tensor) -> None:
    for again in (False, True):
        _backward(x, bias, _forward(x, bias), again)


def _traffic(case: Case, stream: int, matmul: int) -> tuple[int, int]:
    elements = 4 * case.batch * case.tokens * case.width
    return 2 * elements * matmul, 3 * elements * matmul


SPEC = Spec(
    name="bias_gelu",
    op=bias_gelu,
    reference=bias_gelu_reference,
    inputs=_inputs,
    roles={"x": "matmul", "bias": "matmul"},
    grads=("x", "bias"),
    reduces=("bias",),
    trace=_trace,
    traffic=_traffic,
    cases=(Case(batch=1, tokens=9, width=300, heads=1),),
)
