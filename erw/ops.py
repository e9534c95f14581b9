"""The operations a block is made of, as one injected set.

A model calls ``ops.adaln_modulate(...)`` and never asks which implementation it got; `resolve` decides once, at start.
Names, shapes and argument names are those of the kernel library (`erw.kernels`). B samples, T tokens, D width.

Precision rule of every op: arithmetic in fp32 (fp64 for fp64 input), result rounded once.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from erw.errors import UserError

NORM_EPS = 1e-6
_IMAGES = 16  # of which logits are held at a time
_AGAIN = {"use_reentrant": False, "preserve_rng_state": False}


def _wide(*tensors: Tensor) -> torch.dtype:
    """The dtype to compute in: fp32, or fp64 where an input is."""
    wide = torch.float32
    for tensor in tensors:
        wide = torch.promote_types(wide, tensor.dtype)
    return wide


def adaln_modulate(x: Tensor, *, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm without affine (eps 1e-6), then ``x * (1 + scale) + shift`` (DiT, Sec. 3.2, adaLN).

    x (B, T, D); shift, scale (B, D). Returns (B, T, D) in the dtype of ``shift``, which is the matmuls' dtype.
    """
    wide = _wide(x, shift)
    normed = F.layer_norm(x.to(wide), (x.shape[-1],), eps=NORM_EPS)
    return (normed * (1 + scale.to(wide).unsqueeze(1)) + shift.to(wide).unsqueeze(1)).to(shift.dtype)


def gated_residual(x: Tensor, y: Tensor, *, gate: Tensor) -> Tensor:
    """``x + gate * y``: x (B, T, D) is the residual stream and keeps its dtype; y (B, T, D); gate (B, D)."""
    wide = _wide(x, y)
    return (x.to(wide) + gate.to(wide).unsqueeze(1) * y.to(wide)).to(x.dtype)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotary position embedding on (..., T, H): pairs (x[2i], x[2i+1]) turned by the angles in ``table`` (2, T, H)."""
    wide = _wide(x)
    even, odd = x.to(wide).unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((-odd, even), dim=-1).flatten(-2)
    return (x.to(wide) * table[0] + turned * table[1]).to(x.dtype)


def qk_norm_rope(
    qkv: Tensor, *, q_norm: Callable | None, k_norm: Callable | None, rope: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Packed qkv (B, T, 3, heads, H) to q, k, v (B, heads, T, H).

    ``q_norm``/``k_norm`` normalise over H; ``rope`` (2, T, H) fp32 holds cosines and sines.
    """
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    if q_norm is not None and k_norm is not None:
        q, k = q_norm(q).to(v.dtype), k_norm(k).to(v.dtype)
    if rope is not None:
        q, k = rotate(q, rope), rotate(k, rope)
    return q, k, v


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention without mask: (B, heads, T, H) three times to (B, heads, T, H)."""
    return F.scaled_dot_product_attention(q, k, v)


def adaln_linear(x: Tensor, linear: nn.Linear, *, shift: Tensor, scale: Tensor) -> Tensor:
    """``linear(adaln_modulate(x))``: (B, T, D) to (B, T, E)."""
    return linear(adaln_modulate(x, shift=shift, scale=scale))


def gated_residual_adaln(x: Tensor, y: Tensor, *, gate: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """(x + gate * y, its modulation): the end of one branch and the beginning of the next."""
    x = gated_residual(x, y, gate=gate)
    return x, adaln_modulate(x, shift=shift, scale=scale)


def mlp(x: Tensor, fc1: nn.Linear, fc2: nn.Linear) -> Tensor:
    """``fc2(gelu(fc1(x)))``, GELU by its tanh approximation: (B, T, D) to (B, T, D)."""
    return fc2(F.gelu(fc1(x), approximate="tanh"))


def cosine_alignment(z: Tensor, target: Tensor) -> Tensor:
    """REPA's alignment loss per sample (REPA, Eq. 8): minus the cosine, averaged over tokens.

    z (B, N, D) projected hidden state; target (B, N, D) teacher tokens, without gradient. Returns (B,) fp32 in [-1, 1]
    (fp64 for fp64 input).
    """
    wide = _wide(z)
    return -F.cosine_similarity(z.to(wide), target.detach().to(wide), dim=-1, eps=1e-12).mean(dim=-1)


def _contrast(z: Tensor, u: Tensor, positive: Tensor, tau: float) -> Tensor:
    """Cross-entropy of each row of z (K, b, D) against its ``positive`` (b,) among the rows of u (K, G, D): (K, b)."""
    wide = _wide(z)
    z, u = F.normalize(z.to(wide), dim=-1, eps=1e-12), F.normalize(u.to(wide), dim=-1, eps=1e-12)
    with torch.autocast(z.device.type, enabled=False):  # which would round the logits
        logits = z @ u.transpose(1, 2) / tau
    return torch.logsumexp(logits, dim=-1) - logits.gather(-1, positive.view(1, -1, 1).expand(len(z), -1, 1)).squeeze(-1)


def nt_xent_alignment(z: Tensor, target: Tensor, *, first: int, group: int, tau: float) -> Tensor:
    """NT-Xent with in-batch negatives per sample (ERW, Sec. 3): token n of image i against token n of the images j of its
    group, -log softmax_j(cos(z_in, u_jn) / tau) at j = i, averaged over n.

    z (B, N, D) projected hidden state; target (W, N, D) teacher tokens of whole groups of ``group`` images, without
    gradient; z's first image is target's row ``first``. Returns (B,) fp32 (fp64 for fp64 input). One group's logits
    (N, G, G) exist at a time and are computed again for the backward.
    """
    target = target.detach()
    losses = []
    start = 0
    while start < len(z):
        low = (first + start) // group * group
        stop = min(len(z), low + group - first)
        positive = torch.arange(first + start - low, first + stop - low, device=z.device)
        tokens = z[start:stop].transpose(0, 1), target[low : low + group].transpose(0, 1)
        losses.append(checkpoint(_contrast, *tokens, positive, tau, **_AGAIN).mean(dim=0))
        start = stop
    return torch.cat(losses)


def nt_xent_in_image(z: Tensor, target: Tensor, *, tau: float) -> Tensor:
    """NT-Xent whose negatives are the other tokens of the same image: -log softmax_m(cos(z_in, u_im) / tau) at m = n.

    z, target (B, N, D). Returns (B,) fp32 (fp64 for fp64 input). Logits (_IMAGES, N, N) exist at a time.
    """
    positive = torch.arange(z.shape[1], device=z.device)
    parts = zip(z.split(_IMAGES), target.detach().split(_IMAGES), strict=True)
    return torch.cat([checkpoint(_contrast, *part, positive, tau, **_AGAIN).mean(dim=1) for part in parts])


def velocity_mse(velocity: Tensor, target: Tensor) -> Tensor:
    """Mean squared error per sample: (B, C, H, W) twice to (B,) fp32 (fp64 for fp64 input)."""
    wide = _wide(velocity)
    return (velocity.to(wide) - target.to(wide)).square().flatten(1).mean(dim=1)


@dataclass(frozen=True)
class OpSet:
    """One implementation of each op. Swap one field with `dataclasses.replace` to see what it buys."""

    adaln_modulate: Callable = adaln_modulate
    gated_residual: Callable = gated_residual
    qk_norm_rope: Callable = qk_norm_rope
    attention: Callable = attention
    adaln_linear: Callable = adaln_linear
    gated_residual_adaln: Callable = gated_residual_adaln
    mlp: Callable = mlp
    cosine_alignment: Callable = cosine_alignment
    nt_xent_alignment: Callable = nt_xent_alignment
    nt_xent_in_image: Callable = nt_xent_in_image
    velocity_mse: Callable = velocity_mse


REFERENCE = OpSet()


def _linear_parts(linear: nn.Linear) -> dict[str, Tensor | None]:
    return {"weight": linear.weight, "bias": linear.bias}


def fused() -> OpSet:
    """The block's operations by their kernels (`erw.kernels`), which keep less for the backward as well; losses are plain."""
    from erw import kernels
    from erw.kernels import fused as pairs

    def qk_norm_rope(qkv, *, q_norm, k_norm, rope):
        norms = {"norm": "none", "rope": rope}
        if q_norm is not None and k_norm is not None:
            norms |= {"norm": "layer", "eps": q_norm.eps, "q_weight": q_norm.weight, "q_bias": q_norm.bias}
            norms |= {"k_weight": k_norm.weight, "k_bias": k_norm.bias}
        return kernels.qk_norm_rope(qkv, **norms)

    def mlp(x, fc1, fc2):
        return pairs.mlp(x, fc1_weight=fc1.weight, fc1_bias=fc1.bias, fc2_weight=fc2.weight, fc2_bias=fc2.bias)

    def adaln_linear(x, linear, *, shift, scale):
        return pairs.adaln_linear(x, shift=shift, scale=scale, **_linear_parts(linear))

    return OpSet(
        adaln_modulate=kernels.adaln_modulate,
        gated_residual=kernels.gated_residual,
        gated_residual_adaln=kernels.gated_residual_adaln,
        qk_norm_rope=qk_norm_rope,
        adaln_linear=adaln_linear,
        mlp=mlp,
    )


def resolve(name: str, attention: str = "sdpa") -> OpSet:
    """The op set called ``name``: reference (plain PyTorch), fused (kernels) or auto; with ``attention``'s backend in it.

    ``auto`` is fused on a CUDA device and reference elsewhere, decided here and nowhere later. Raises `UserError` for a name
    that is not known and for a backend whose package is missing.
    """
    if name == "auto":
        name = "fused" if torch.cuda.is_available() else "reference"
    if name not in ("reference", "fused"):
        raise UserError(f"--engine.ops {name} is not known; known: auto, reference, fused")
    opset = REFERENCE if name == "reference" else fused()
    if attention == "sdpa":
        return opset
    from erw.kernels.attention import attention_backend

    try:
        return replace(opset, attention=attention_backend(attention))
    except (ValueError, ImportError) as error:
        raise UserError(f"--engine.attention {attention}: {error}") from None
