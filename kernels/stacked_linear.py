"""Linears of one shape on the same input, as one batched matmul: all blocks' modulation from one conditioning vector.

    out_l = x W_l^T + b_l,   dx = sum_l dout_l W_l,   dW_l = dout_l^T x,   db_l = sum_B dout_l

With B of some dozens a single one of these GEMMs is over before its launch has paid. Saved: x and the weights themselves. Where
the weights lie at equal distances in one storage, as blocks' do in the flat buffers of ZeRO 1 and 2, they are read in place;
elsewhere they are copied together first, which costs as much as reading them once more.

Not under ZeRO-3, whose weights are there only while their own module runs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def stacked_linear(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """``linear(x, weight, bias)`` of each pair: x (B, D), weights (E, D), biases (E,) to as many (B, E).

    All of one dtype, or cast to autocast's where it is on. Raises ValueError for weights of different shapes.
    """
    if len(weights) != len(biases) or not weights:
        raise ValueError(f"weights are {len(weights)}, biases {len(biases)}, should be as many and at least one")
    shape = (weights[0].shape[0], x.shape[-1])
    for number, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        if tuple(weight.shape) != shape or tuple(bias.shape) != shape[:1]:
            found = f"{tuple(weight.shape)} and {tuple(bias.shape)}"
            raise ValueError(f"weight and bias {number} have shapes {found}, should be {shape} and {shape[:1]}")
    given = (x, *weights, *biases)
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        given = tuple(tensor.to(dtype) for tensor in given)
    return _StackedLinear.apply(*given)


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """(L, ...) of L dense tensors of one shape: a view where they lie at equal distances in one storage, else a copy."""
    first, *rest = tensors
    starts = [tensor.storage_offset() for tensor in tensors]
    step = starts[1] - starts[0] if rest else first.numel()
    alike = all(t.is_contiguous() and t.untyped_storage()._cdata == first.untyped_storage()._cdata for t in tensors)
    if alike and step >= first.numel() and all(b - a == step for a, b in zip(starts, starts[1:], strict=False)):
        return first.as_strided((len(tensors), *first.shape), (step, *first.stride()))
    return torch.stack(list(tensors))


class _StackedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, *parameters):
        count = len(parameters) // 2
        weights, biases = parameters[:count], parameters[count:]
        ctx.save_for_backward(x, *weights)
        out = torch.baddbmm(stacked(biases).unsqueeze(1), x.expand(count, *x.shape), stacked(weights).transpose(1, 2))
        return out.unbind()

    @staticmethod
    @once_differentiable
    def backward(ctx, *douts):
        x, *weights = ctx.saved_tensors
        dout = torch.stack(douts)
        # Summed in fp32 and rounded once, where autograd would round after each of them.
        dx = torch.bmm(dout, stacked(weights)).sum(dim=0, dtype=torch.promote_types(x.dtype, torch.float32)).to(x.dtype)
        dweights = torch.bmm(dout.transpose(1, 2), x.expand(len(weights), *x.shape))
        return dx, *dweights.unbind(), *dout.sum(dim=1).unbind()
