"""Mean squared error of a sample's velocity (or noise) prediction (SiT, Sec. 2).

    out_b = mean over C, H, W of (velocity - target)^2           velocity, target (B, C, H, W)
    dvelocity = (2 dout_b / CHW) (velocity - target)             no gradient for the target

Saved: both inputs. Moves |velocity| + |target| forward and |target| + 2|velocity| backward. Samples may lie apart: the first
half of a network's channels is read where it is. Arithmetic is fp32, dvelocity is rounded once. Partial sums of blocks of
a sample are added in order, and a sample that fits into one block is done by one kernel: no atomics, twice the same bits.

Not worth a launch of its own where torch.compile sees the whole loss: the tensors are small.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from erw.kernels._check import check_floats, check_shape, dense_samples
from erw.kernels._launch import device_of, launch, runs_kernels
from erw.kernels._spec import Case, Inputs, Spec, telling_rows
from erw.kernels._sum import mean_rows

_BLOCK, _WARPS = 4096, 4


def velocity_mse_reference(velocity: Tensor, target: Tensor) -> Tensor:
    """See `velocity_mse`; plain PyTorch, on any device and in any float dtype."""
    wide = torch.promote_types(torch.promote_types(velocity.dtype, target.dtype), torch.float32)
    return (velocity.to(wide) - target.detach().to(wide)).square().flatten(1).mean(dim=1)


@triton.jit
def _forward_kernel(
    velocity_ptr, target_ptr, partials_ptr, velocity_stride, target_stride, elements, BLOCK: tl.constexpr
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = place < elements
    velocity = tl.load(velocity_ptr + b * velocity_stride + place, mask=mask, other=0.0).to(tl.float32)
    target = tl.load(target_ptr + b * target_stride + place, mask=mask, other=0.0).to(tl.float32)
    error = velocity - target
    partial = tl.sum(error * error, axis=0) / elements
    tl.store(partials_ptr + b * tl.num_programs(1) + tl.program_id(1), partial)


@triton.jit
def _backward_kernel(
    velocity_ptr, target_ptr, dout_ptr, dvelocity_ptr, velocity_stride, target_stride, elements, BLOCK: tl.constexpr
):
    b = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = place < elements
    velocity = tl.load(velocity_ptr + b * velocity_stride + place, mask=mask, other=0.0).to(tl.float32)
    target = tl.load(target_ptr + b * target_stride + place, mask=mask, other=0.0).to(tl.float32)
    factor = 2.0 * tl.load(dout_ptr + b) / elements
    dvelocity = factor * (velocity - target)
    tl.store(dvelocity_ptr + b * elements + place, dvelocity.to(dvelocity_ptr.dtype.element_ty), mask=mask)


def _blocks(elements: int, backward: bool) -> tuple[int, int]:
    """(elements a program, programs a sample). Forward: one program for a sample of up to 4,096, so that one kernel does."""
    block = min(triton.next_power_of_2(max(elements, 1)), _BLOCK // 4 if backward else _BLOCK)
    return block, triton.cdiv(elements, block)


def _forward(velocity: Tensor, target: Tensor) -> Tensor:
    batch, elements = velocity.shape[0], velocity.shape[1:].numel()
    velocity, target = dense_samples(velocity), dense_samples(target)
    block, parts = _blocks(elements, backward=False)
    partials = velocity.new_empty((batch, parts), dtype=torch.float32)
    with device_of(velocity):
        launch(
            _forward_kernel, (batch, parts), velocity, target, partials, velocity.stride(0), target.stride(0), elements,
            num_warps=_WARPS, BLOCK=block,
        )  # fmt: skip
        return partials.view(batch) if parts == 1 else mean_rows(partials, count=1)


def _backward(velocity: Tensor, target: Tensor, dout: Tensor) -> Tensor:
    batch, elements = velocity.shape[0], velocity.shape[1:].numel()
    velocity, target, dout = dense_samples(velocity), dense_samples(target), dout.contiguous()
    dvelocity = torch.empty_like(velocity, memory_format=torch.contiguous_format)
    block, parts = _blocks(elements, backward=True)
    with device_of(velocity):
        launch(
            _backward_kernel, (batch, parts), velocity, target, dout, dvelocity, velocity.stride(0), target.stride(0),
            elements, num_warps=_WARPS, BLOCK=block,
        )  # fmt: skip
    return dvelocity


_forward_op = torch.library.custom_op("erw::velocity_mse", _forward, mutates_args=())
_backward_op = torch.library.custom_op("erw::velocity_mse_backward", _backward, mutates_args=())


@_forward_op.register_fake
def _(velocity, target):
    return velocity.new_empty(velocity.shape[0], dtype=torch.float32)


@_backward_op.register_fake
def _(velocity, target, dout):
    return velocity.new_empty(velocity.shape)


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, dout):
    return _backward_op(*ctx.saved_tensors, dout), None


_forward_op.register_autograd(_differentiate, setup_context=_save)


def velocity_mse(velocity: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each sample.

    velocity, target (B, C, H, W), any of fp32, bf16, fp16, also mixed; samples may be slices of larger ones; the target gets
    no gradient. Returns (B,) fp32. On a CPU (without Triton's interpreter) the plain PyTorch form computes it. Raises
    ValueError for arguments that do not fit.
    """
    check_shape("velocity", velocity, (None,) * 4, "B C H W")
    check_shape("target", target, tuple(velocity.shape), "B C H W")
    if not runs_kernels(velocity):
        return velocity_mse_reference(velocity, target)
    check_floats(velocity=velocity, target=target)
    return _forward_op(velocity, target)


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    shape = case.latent(channels=4)
    return {"velocity": telling_rows(shape, generator), "target": telling_rows(shape, generator)}


def _trace(velocity: Tensor, target: Tensor) -> None:
    for times in (1, 4):  # latents of 256 and of 512 pixels' images
        pair = velocity.repeat(1, times, 1, 1), target.repeat(1, times, 1, 1)
        _backward(*pair, _forward(*pair))


def _traffic(case: Case, stream: int, matmul: int) -> tuple[int, int]:
    elements = torch.Size(case.latent(channels=4)).numel()
    return elements * (stream + matmul), elements * (stream + 2 * matmul)


SPEC = Spec(
    name="velocity_mse",
    op=velocity_mse,
    reference=velocity_mse_reference,
    inputs=_inputs,
    roles={"velocity": "matmul", "target": "stream"},
    grads=("velocity",),
    trace=_trace,
    traffic=_traffic,
    cases=(Case(batch=2, tokens=300, width=8, heads=1), Case(batch=2, tokens=1040, width=8, heads=1)),
)
