"""The published REPA training step in plain PyTorch: what this project is timed against and checked against.

Rendered after sihyun-yu/REPA (67f7145, MIT): `models/sit.py`, `loss.py` and the loop body of `train.py`. It keeps what
costs time there: autocast over fp32 weights, timm's blocks, label dropout and posterior sampling in the step, t drawn
on the host, an alignment loss that loops over samples, default AdamW, an EMA that loops over parameters, and three
host reads a step. Parameter names are the public ones. B samples, T tokens, D width, F teacher features.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Attention, Mlp, PatchEmbed
from torch import Tensor, nn

from erw.models.sit import SiTConfig

LATENT_SCALE = 0.18215
PROJECTOR_HIDDEN = 2048
Precision = Literal["fp16", "bf16", "fp32"]
AUTOCAST = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def _adaln(norm: nn.LayerNorm, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return norm(x) * (1 + scale) + shift


def _norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)


class ReferenceBlock(nn.Module):
    """adaLN-Zero block out of timm's Attention and Mlp."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float):
        super().__init__()
        self.norm1, self.norm2 = _norm(width), _norm(width)
        self.attn = Attention(width, num_heads=num_heads, qkv_bias=True)
        self.attn.fused_attn = True
        self.mlp = Mlp(width, int(width * mlp_ratio), act_layer=partial(nn.GELU, approximate="tanh"), drop=0)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, T, D), c (B, D)."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c).unsqueeze(1).chunk(6, dim=-1)
        x = x + gate_a * self.attn(_adaln(self.norm1, x, shift_a, scale_a))
        return x + gate_m * self.mlp(_adaln(self.norm2, x, shift_m, scale_m))


class ReferenceFinal(nn.Module):
    """adaLN and the output Linear."""

    def __init__(self, width: int, outputs: int):
        super().__init__()
        self.norm_final = _norm(width)
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).unsqueeze(1).chunk(2, dim=-1)
        return self.linear(_adaln(self.norm_final, x, shift, scale))


class ReferenceTime(nn.Module):
    """t (B,) to (B, D); the frequencies are made on the host and moved, every step, as published."""

    def __init__(self, width: int, frequencies: int = 256):
        super().__init__()
        self.half = frequencies // 2
        self.mlp = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        decay = torch.exp(-math.log(10000) * torch.arange(self.half, dtype=torch.float32) / self.half).to(t.device)
        angles = t.float().unsqueeze(1) * decay
        return self.mlp(torch.cat((angles.cos(), angles.sin()), dim=1).to(t.dtype))


class ReferenceLabel(nn.Module):
    """Labels (B,) to (B, D); in training mode a label becomes the null class with probability ``dropout``."""

    def __init__(self, num_classes: int, width: int, dropout: float):
        super().__init__()
        self.num_classes, self.dropout = num_classes, dropout
        self.embedding_table = nn.Embedding(num_classes + 1, width)

    def forward(self, y: Tensor) -> Tensor:
        if self.training and self.dropout > 0:
            dropped = torch.rand(y.shape[0], device=y.device) < self.dropout
            y = torch.where(dropped, self.num_classes, y)
        return self.embedding_table(y)


class ReferenceSiT(nn.Module):
    """SiT with a projector at ``encoder_depth``: ``model(x, t, y)`` gives the velocity and a list of one (B, T, F)."""

    def __init__(self, config: SiTConfig, *, encoder_depth: int = 8, feature_width: int = 768, label_dropout: float = 0.1):
        super().__init__()
        width, patch = config.width, config.patch_size
        self.config, self.encoder_depth = config, encoder_depth
        self.x_embedder = PatchEmbed(config.input_size, patch, config.in_channels, width)
        self.t_embedder = ReferenceTime(width)
        self.y_embedder = ReferenceLabel(config.num_classes, width, label_dropout)
        self.pos_embed = nn.Parameter(_position_table(config.grid, width), requires_grad=False)
        self.blocks = nn.ModuleList(ReferenceBlock(width, config.num_heads, config.mlp_ratio) for _ in range(config.depth))
        self.projectors = nn.ModuleList([_projector(width, PROJECTOR_HIDDEN, feature_width)])
        self.final_layer = ReferenceFinal(width, patch * patch * config.in_channels)
        self._initialize()

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.data.flatten(1))
        nn.init.zeros_(self.x_embedder.proj.bias)
        for weight in (self.y_embedder.embedding_table.weight, self.t_embedder.mlp[0].weight,
                       self.t_embedder.mlp[2].weight):  # fmt: skip
            nn.init.normal_(weight, std=0.02)
        zeroed = [part.adaLN_modulation[1] for part in (*self.blocks, self.final_layer)]
        for linear in (*zeroed, self.final_layer.linear):
            nn.init.zeros_(linear.weight)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        """x (B, C, S, S), t (B,), y (B,) int64."""
        x = self.x_embedder(x) + self.pos_embed
        samples, tokens, width = x.shape
        c = self.t_embedder(t) + self.y_embedder(y)
        projected = []
        for number, block in enumerate(self.blocks, start=1):
            x = block(x, c)
            if number == self.encoder_depth:
                flat = x.reshape(-1, width)
                projected = [projector(flat).reshape(samples, tokens, -1) for projector in self.projectors]
        return self._to_image(self.final_layer(x, c)), projected

    def _to_image(self, x: Tensor) -> Tensor:
        grid, patch, channels = self.config.grid, self.config.patch_size, self.config.in_channels
        x = x.reshape(-1, grid, grid, patch, patch, channels)
        x = torch.einsum("bhwijc->bchiwj", x)
        return x.reshape(-1, channels, grid * patch, grid * patch)


def _projector(width: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, out))


def _position_table(grid: int, width: int) -> Tensor:
    """(1, grid^2, width): sine and cosine of the column, then of the row (MAE)."""
    omega = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    side = torch.arange(grid, dtype=torch.float64)
    row, column = torch.meshgrid(side, side, indexing="ij")
    halves = []
    for position in (column, row):
        angles = torch.outer(position.flatten(), omega)
        halves += [angles.sin(), angles.cos()]
    return torch.cat(halves, dim=1).float().unsqueeze(0)


Losses = Callable[[Callable, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def reference_losses(model: Callable, latents: Tensor, labels: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """Velocity loss (B,) and alignment loss (scalar) at a random t, on x_t = (1 - t) x + t eps (SiT, Eq. 1).

    latents (B, C, S, S), labels (B,), features (B, T, F).
    """
    t = torch.rand((latents.shape[0], 1, 1, 1)).to(device=latents.device, dtype=latents.dtype)
    noise = torch.randn_like(latents)
    alpha, sigma, d_alpha, d_sigma = 1 - t, t, -1, 1
    velocity, projected = model(alpha * latents + sigma * noise, t.flatten(), y=labels)
    error = (velocity - (d_alpha * latents + d_sigma * noise)) ** 2
    return error.mean(dim=(1, 2, 3)), alignment_loop(projected[0], features)


def alignment_loop(projected: Tensor, features: Tensor) -> Tensor:
    """Minus the mean cosine (REPA, Eq. 8), one sample after the other: (B, T, F) twice to a scalar."""
    total: Tensor | float = 0.0
    for student, teacher in zip(projected, features, strict=True):
        student, teacher = F.normalize(student, dim=-1), F.normalize(teacher, dim=-1)
        total = total + torch.mean(-(teacher * student).sum(dim=-1))
    return total / projected.shape[0]


@torch.no_grad()
def sample_posterior(moments: Tensor) -> Tensor:
    """Moments (B, 2C, S, S), mean beside standard deviation, to a scaled latent (B, C, S, S)."""
    mean, std = moments.chunk(2, dim=1)
    return (mean + std * torch.randn_like(mean)) * LATENT_SCALE + 0.0


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """``ema = decay * ema + (1 - decay) * model``, a parameter at a time, matched by name."""
    averaged = dict(ema.named_parameters())
    for name, parameter in dict(model.named_parameters()).items():
        averaged[name.replace("module.", "")].mul_(decay).add_(parameter.data, alpha=1 - decay)
