"""Embeddings of patches, time, class and position. Names of parameters are those of the public SiT checkpoints."""

import math

import numpy as np
import torch
from torch import Tensor, nn


class TableModule(nn.Module):
    """A module whose own buffers are position tables: they follow the device, never the dtype.

    ``module.bfloat16()`` (what DeepSpeed does to a model) would round a sinusoid to 8 bits.
    """

    def _apply(self, fn, recurse=True):
        tables, self._buffers = self._buffers, {}
        super()._apply(fn, recurse)
        self._buffers = {n: None if table is None else table.to(fn(table).device) for n, table in tables.items()}
        return self


class PatchEmbed(nn.Module):
    """(B, C, S, S) latents to (B, T, D) tokens, T = (S / patch)^2 in row order."""

    def __init__(self, in_channels: int, patch_size: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        # As rows in memory too: every operation after this keeps the layout that it is given, and works along D.
        return self.proj(x).flatten(2).transpose(1, 2).contiguous()


class TimestepEmbedder(nn.Module):
    """t (B,) to (B, D). The sinusoid is computed in fp32 whatever the weights' dtype."""

    FREQUENCIES = 256

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(self.FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    @classmethod
    def sinusoid(cls, t: Tensor, max_period: float = 10000.0) -> Tensor:
        """(B,) to (B, 256) fp32: cosines, then sines."""
        half = cls.FREQUENCIES // 2
        steps = torch.arange(half, dtype=torch.float32, device=t.device)
        angles = t.float()[:, None] * torch.exp(-math.log(max_period) * steps / half)
        return torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(self.sinusoid(t).to(self.mlp[0].weight.dtype))


class LabelEmbedder(nn.Module):
    """Labels (B,) int64 in 0..num_classes to (B, D); the index num_classes is the null class of guidance."""

    def __init__(self, num_classes: int, width: int):
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, width)

    def forward(self, y: Tensor) -> Tensor:
        return self.embedding_table(y)


def _sincos_1d(positions: np.ndarray, width: int) -> np.ndarray:
    frequencies = 1.0 / 10000 ** (np.arange(width // 2, dtype=np.float64) / (width / 2))
    angles = np.outer(positions, frequencies)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def sincos_table(grid: int, width: int) -> Tensor:
    """(1, grid^2, width) fp32 fixed 2D sine-cosine positions (MAE's): columns in the first half, rows in the second."""
    rows, columns = np.divmod(np.arange(grid * grid, dtype=np.float64), grid)
    table = np.concatenate([_sincos_1d(columns, width // 2), _sincos_1d(rows, width // 2)], axis=1)
    return torch.tensor(table, dtype=torch.float32).unsqueeze(0)


def rope_table(grid: int, head_width: int, theta: float = 10000.0) -> Tensor:
    """(2, grid^2, head_width) fp32 cosines and sines of 2D axial RoPE: rows turn the first half, columns the second."""
    quarter = head_width // 4
    frequencies = theta ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    position = torch.arange(grid * grid)
    rows, columns = position // grid, position % grid
    angles = torch.cat([rows[:, None] * frequencies, columns[:, None] * frequencies], dim=1)
    angles = angles.repeat_interleave(2, dim=1)
    return torch.stack([angles.cos(), angles.sin()]).float()
