"""The space that the model works in: pixels as they are, or a VAE's latents."""

import torch
from torch import Tensor

from erw import rng
from erw.errors import UserError
from erw.latents.config import LatentConfig, settled
from erw.latents.vae import open_vae
from erw.rng import Purpose
from erw.types import PerChannel


class Pixels:
    """Images are the latents: values in [-1, 1] in and out."""

    def draw(self, stored: Tensor, seed: int, index: Tensor) -> Tensor:
        """(B, C, S, S) fp32 as stored, or uint8 0..255 to fp32 in [-1, 1]."""
        return stored.float() / 127.5 - 1 if stored.dtype == torch.uint8 else stored

    def channels(self, stored: int) -> int:
        """Channels that the model sees, from those stored."""
        return stored

    def prepare(self) -> None:
        """Nothing to load."""

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, S, S) as they are: about [-1, 1], which a sample may leave by a little."""
        return latents


class VaeLatents:
    """A VAE's latents, scaled; decoding loads the VAE on first use.

    Of moments every epoch draws another posterior sample, as in REPA; latents without moments are the same in each.
    """

    def __init__(self, config: LatentConfig):
        self.config, self._vae = settled(config, None), None

    def draw(self, stored: Tensor, seed: int, index: Tensor) -> Tensor:
        """Moments (B, 2C, S, S), mean then standard deviation, or latents (B, C, S, S), to scaled ones (B, C, S, S) fp32.

        ``index`` (B,) int64 is the position in the stream: another one in every epoch.
        """
        latents = stored
        if self.config.kind == "vae":
            mean, std = stored.chunk(2, dim=1)
            latents = mean + std * rng.normal(seed, index, Purpose.POSTERIOR, tuple(mean.shape[1:]))
        return (latents - _per_channel(self.config.shift, latents)) * _per_channel(self.config.scale, latents)

    def channels(self, stored: int) -> int:
        """Half of what is stored, or all of it where that has no moments."""
        if self.config.kind == "vae" and stored % 2:
            raise UserError(
                f"the dataset has {stored} channels, but VAE moments come in pairs: set --latents.kind latents or pixels"
            )
        channels = stored // 2 if self.config.kind == "vae" else stored
        for name in ("scale", "shift"):
            value = getattr(self.config, name)
            if isinstance(value, tuple) and len(value) != channels:
                raise UserError(f"--latents.{name} has {len(value)} numbers for {channels} channels: give one, or one for each")
        return channels

    def prepare(self) -> None:
        """Load the VAE that decodes, if it is not there yet. Raises `UserError` where it cannot be had."""
        self._vae = self._vae or open_vae(self.config.vae, torch.device("cpu"))

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, C, S, S) to images (B, 3, H, W) fp32 in [-1, 1], on the latents' device."""
        self.prepare()
        self._vae.to(latents.device)
        latents = latents.float()
        return self._vae.decode(latents / _per_channel(self.config.scale, latents) + _per_channel(self.config.shift, latents))


def _per_channel(value: PerChannel, like: Tensor) -> Tensor | float:
    """A number as it is; one a channel as (1, C, 1, 1) beside ``like``."""
    return (
        value if isinstance(value, float | int) else torch.tensor(value, dtype=like.dtype, device=like.device).view(1, -1, 1, 1)
    )


def latent_space(config: LatentConfig) -> Pixels | VaeLatents:
    """The space that ``config`` names."""
    return Pixels() if config.kind == "pixels" else VaeLatents(config)
