"""Attention on a CPU as matmuls: torch's own backward computes them a block at a time, without AMX's tiles.

The forward keeps the weights P = softmax(S), S = scale q k^T, in the dtype of q; the backward is four matmuls and one pass:

    dv = P^T dout,   dS = P (dout v^T - rowsum(dout out)),   dq = scale dS k,   dk = scale dS^T q

P of a layer has B heads T^2 elements. Where they are more than `KEPT_BYTES` it is not kept: the forward is torch's, and the
backward makes P again from the logsumexp, a sample at a time. Meant for torch.compile: eager, its passes over S are not fused.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

KEPT_BYTES = 64 << 20
"""Of P in a layer: of SiT-B/2 with 256 tokens, 42 images in bf16."""


def matmul_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(B, heads, T, H) three times to (B, heads, T, H). Raises RuntimeError for tensors that are not on a CPU."""
    if q.device.type != "cpu":
        raise RuntimeError(f"attention by matmul is for CPUs, not for {q.device.type}")
    batch, heads, tokens, _ = q.shape
    kept = batch * heads * tokens * k.shape[2] * q.element_size() <= KEPT_BYTES
    return (_Keeping if kept else _Again).apply(q, k, v)


class _Keeping(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v):
        q, k, v = (x.contiguous() for x in (q, k, v))
        wide = torch.promote_types(q.dtype, torch.float32)
        scores = (q @ k.transpose(-1, -2)).to(wide)
        weights = ((scores - scores.amax(dim=-1, keepdim=True)) * q.shape[-1] ** -0.5).exp()
        weights = (weights / weights.sum(dim=-1, keepdim=True)).to(q.dtype)
        out = weights @ v
        ctx.save_for_backward(q, k, v, out, weights)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        q, k, v, out, weights = ctx.saved_tensors
        dout = dout.contiguous()
        return _gradients(q, k, v, dout, weights, _delta(dout, out))


class _Again(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v):
        out, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
        ctx.save_for_backward(q, k, v, out, logsumexp)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        q, k, v, out, logsumexp = ctx.saved_tensors
        parts = []
        given = (q, k, v, dout, logsumexp.unsqueeze(-1), _delta(dout, out))
        for q1, k1, v1, dout1, lse1, delta1 in zip(*given, strict=True):
            weights = ((q1 @ k1.transpose(1, 2)).float() * q.shape[-1] ** -0.5 - lse1).exp()
            parts.append(_gradients(q1, k1, v1, dout1, weights, delta1))
        return tuple(torch.stack(part) for part in zip(*parts, strict=True))


def _delta(dout: Tensor, out: Tensor) -> Tensor:
    """rowsum(dout out), fp32 (fp64 for fp64): (..., T, H) to (..., T, 1)."""
    wide = torch.promote_types(out.dtype, torch.float32)
    return (dout.to(wide) * out.to(wide)).sum(dim=-1, keepdim=True)


def _gradients(q: Tensor, k: Tensor, v: Tensor, dout: Tensor, weights: Tensor, delta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv from P, of the dtype of q or wider."""
    dweights = (dout @ v.transpose(-1, -2)).to(delta.dtype)
    dscores = (weights.to(delta.dtype) * (dweights - delta) * q.shape[-1] ** -0.5).to(q.dtype)
    return dscores @ k, dscores.transpose(-1, -2) @ q, weights.to(q.dtype).transpose(-1, -2) @ dout
