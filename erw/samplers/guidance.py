"""Classifier-free guidance (Ho & Salimans 2022) within an interval of t (Kynkaanniemi et al. 2024).

f = f_null + scale * (f_label - f_null) for low <= t <= high, f = f_label outside, for the velocity or the noise. The
learned variance, and channels that are not guided, are the label's.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from erw.samplers.config import SampleConfig

Network = Callable[[Tensor, Tensor, Tensor], Tensor]


def guided(network: Network, config: SampleConfig, null: int, channels: int, time_scale: float) -> Network:
    """``network`` with guidance; both halves go through it as one batch. ``channels`` is C, ``null`` the null class."""
    if config.guidance == 1.0:
        return network
    count = min(config.guidance_channels or channels, channels)
    always = config.guidance_low <= 0 and config.guidance_high >= 1  # then nobody reads t, which may lie on a device

    def with_guidance(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        if not always and not config.guidance_low <= float(t[0]) / time_scale <= config.guidance_high:
            return network(x, t, y)
        both = network(x.repeat(2, 1, 1, 1), t.repeat(2), torch.cat([y, torch.full_like(y, null)]))
        label, free = both.chunk(2)
        mixed = free[:, :count] + config.guidance * (label[:, :count] - free[:, :count])
        return torch.cat([mixed, label[:, count:]], dim=1)

    return with_guidance
