"""Random numbers that depend on (seed, sample, purpose) and on nothing else.

Philox-4x32-10 (Salmon et al., SC 2011), a counter-based generator: no state, no loops over samples, no host syncs.
Rank, micro-batch and device do not enter, so a run draws the same noise however it is split. The mapping from words to
floats is Triton's (`tl.philox`, `tl.rand`, `tl.randn`), so that a kernel can draw the same numbers in place.
"""

import math
from enum import IntEnum

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_ROUND_A, _ROUND_B = 0xD2511F53, 0xCD9E8D57
_KEY_A, _KEY_B = 0x9E3779B9, 0xBB67AE85


class Purpose(IntEnum):
    """What a draw is for. Numbers are part of the run's identity: append, never renumber."""

    NOISE = 0
    TIME = 1
    LABEL_DROP = 2
    POSTERIOR = 3
    SAMPLER_START = 4
    SAMPLER_STEP = 5
    SAMPLER_LABEL = 6


def philox(seed: int, counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten rounds of Philox-4x32 with the 64-bit key ``seed``; words are int64 tensors holding unsigned 32-bit values."""
    c0, c1, c2, c3 = counter
    key_a, key_b = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(10):
        # int64 products wrap, which leaves the low 64 bits right; shift and mask give their unsigned halves.
        a, b = c0 * _ROUND_A, c2 * _ROUND_B
        c0, c1, c2, c3 = ((b >> 32) & _MASK) ^ c1 ^ key_a, b & _MASK, ((a >> 32) & _MASK) ^ c3 ^ key_b, a & _MASK
        key_a, key_b = (key_a + _KEY_A) & _MASK, (key_b + _KEY_B) & _MASK
    return c0, c1, c2, c3


def _words(seed: int, index: Tensor, purpose: int, blocks: int, stream: int) -> tuple[Tensor, ...]:
    """Four (B, blocks) words for each sample of ``index`` (B,)."""
    index = index.to(torch.int64)[:, None]
    block = torch.arange(blocks, device=index.device, dtype=torch.int64)[None, :]
    c0, c1 = (block + 0 * index), (index & _MASK) + 0 * block
    c2 = ((index >> 32) & _MASK) + 0 * block
    c3 = torch.full_like(c0, (int(purpose) << 24 | stream) & _MASK)
    return philox(seed, (c0, c1, c2, c3))


def _to_uniform(word: Tensor) -> Tensor:
    """Unsigned 32-bit words to fp32 in [0, 1), the way Triton does it."""
    signed = torch.where(word >= 1 << 31, word - (1 << 32), word)
    return torch.where(signed < 0, -signed - 1, signed).to(torch.float32) * 4.6566127342e-10


def uniform(seed: int, index: Tensor, purpose: Purpose) -> Tensor:
    """(B,) fp32 uniform draws in [0, 1), one for each stream position in ``index`` (B,) int64."""
    return _to_uniform(_words(seed, index, purpose, 1, 0)[0][:, 0])


def normal(seed: int, index: Tensor, purpose: Purpose, shape: tuple[int, ...], stream: int = 0) -> Tensor:
    """(B, *shape) fp32 standard normal draws (Box-Muller); ``stream`` (below 2^24) separates repeated draws."""
    count = math.prod(shape)
    words = _words(seed, index, purpose, -(-count // 4), stream)
    pairs = []
    for first, second in (words[:2], words[2:]):
        radius = torch.sqrt(-2.0 * torch.log(_to_uniform(first).clamp_min(1.0e-7)))
        angle = (2.0 * math.pi) * _to_uniform(second)
        pairs += [radius * torch.cos(angle), radius * torch.sin(angle)]
    return torch.stack(pairs, dim=-1).flatten(1)[:, :count].reshape(index.shape[0], *shape)
