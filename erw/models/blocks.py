"""The transformer block with adaLN-Zero conditioning (DiT, Sec. 3.2) and the final layer."""

from torch import Tensor, nn

from erw.ops import OpSet


class Attention(nn.Module):
    """Multi-head self-attention with optional QK-norm (LayerNorm per head, as timm's) and 2D RoPE.

    ``qkv`` is called by the block, which fuses it with the modulation before it; the rest is the forward.
    """

    def __init__(self, width: int, num_heads: int, qk_norm: bool, ops: OpSet):
        super().__init__()
        self.num_heads, self.ops = num_heads, ops
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = nn.LayerNorm(width // num_heads) if qk_norm else None
        self.k_norm = nn.LayerNorm(width // num_heads) if qk_norm else None
        self.proj = nn.Linear(width, width)

    def forward(self, qkv: Tensor, rope: Tensor | None) -> Tensor:
        """qkv (B, T, 3D) as ``self.qkv`` gave it, rope (2, T, D / heads) or None; returns (B, T, D)."""
        qkv = qkv.unflatten(-1, (3, self.num_heads, -1))
        q, k, v = self.ops.qk_norm_rope(qkv, q_norm=self.q_norm, k_norm=self.k_norm, rope=rope)
        return self.proj(self.ops.attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Linear, GELU (tanh), Linear."""

    def __init__(self, width: int, hidden: int, ops: OpSet):
        super().__init__()
        self.ops = ops
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.mlp(x, self.fc1, self.fc2)


class SiTBlock(nn.Module):
    """Attention and MLP, each behind adaLN and a gate; the residual stream keeps the dtype it came in.

    ``adaLN_modulation`` is called by the model, for all blocks at once where the operations allow.
    """

    def __init__(self, width: int, num_heads: int, mlp_ratio: float, qk_norm: bool, ops: OpSet):
        super().__init__()
        self.ops = ops
        self.attn = Attention(width, num_heads, qk_norm, ops)
        self.mlp = Mlp(width, int(width * mlp_ratio), ops)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, modulation: Tensor, rope: Tensor | None) -> Tensor:
        """x (B, T, D) residual stream, modulation (B, 6D) as ``adaLN_modulation`` gives it, rope (2, T, D / heads) or None."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation.chunk(6, dim=-1)
        ops = self.ops
        attended = self.attn(ops.adaln_linear(x, self.attn.qkv, shift=shift_a, scale=scale_a), rope)
        x, modulated = ops.gated_residual_adaln(x, attended, gate=gate_a, shift=shift_m, scale=scale_m)
        return ops.gated_residual(x, self.mlp(modulated), gate=gate_m)


class FinalLayer(nn.Module):
    """adaLN, then a Linear to patch^2 * out_channels values a token."""

    def __init__(self, width: int, patch_size: int, out_channels: int, ops: OpSet):
        super().__init__()
        self.ops = ops
        self.linear = nn.Linear(width, patch_size * patch_size * out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=-1)
        return self.ops.adaln_linear(x, self.linear, shift=shift, scale=scale)
