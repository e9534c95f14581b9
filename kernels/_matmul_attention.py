"""Attention on a CPU whose backward is matmuls: torch's own computes them a block at a time, without AMX's tiles.

The forward is torch's and keeps the logsumexp L of the scores S = scale q k^T; the backward makes P = exp(S - L) again:

    dv = P^T dout,   dS = P (dout v^T - rowsum(dout out)),   dq = scale dS k,   dk = scale dS^T q

in the dtype of q, so in bf16 a score is rounded as it is where attention is written out. A sample at a time: its scores stay in
cache, and memory does not grow with the batch.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def matmul_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(B, heads, T, H) three times to (B, heads, T, H). Raises RuntimeError for tensors that are not on a CPU."""
    if q.device.type != "cpu":
        raise RuntimeError(f"attention by matmul is for CPUs, not for {q.device.type}")
    return _Attention.apply(q, k, v)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v):
        out, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
        ctx.save_for_backward(q, k, v, out, logsumexp)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        q, k, v, out, logsumexp = ctx.saved_tensors
        scale = q.shape[-1] ** -0.5
        delta = (dout.float() * out.float()).sum(dim=-1, keepdim=True)
        parts = []
        for q1, k1, v1, dout1, lse1, delta1 in zip(q, k, v, dout, logsumexp.unsqueeze(-1), delta, strict=True):
            weights = ((q1 @ k1.transpose(1, 2)).float() * scale - lse1).exp()
            dscores = (weights * ((dout1 @ v1.transpose(1, 2)).float() - delta1) * scale).to(q.dtype)
            parts.append((dscores @ k1, dscores.transpose(1, 2) @ q1, weights.to(q.dtype).transpose(1, 2) @ dout1))
        return tuple(torch.stack(part) for part in zip(*parts, strict=True))
