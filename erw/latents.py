"""The space that the model works in: pixels as they are, or a VAE's latents."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from erw import rng
from erw.errors import UserError
from erw.rng import Purpose
from erw.settings import setting


@dataclass(frozen=True, kw_only=True)
class LatentConfig:
    """Settings of the latent space."""

    kind: Literal["pixels", "vae"] = setting("pixels", "pixels: images in [-1, 1]; vae: moments in, decoded out")
    vae: str = setting("stabilityai/sd-vae-ft-ema", "diffusers AutoencoderKL: hub name or local folder")
    scale: float = setting(0.18215, "the model sees (latent - shift) * scale")
    shift: float = setting(0.0, "see scale")


class Pixels:
    """Images are the latents: values in [-1, 1] in and out."""

    def draw(self, stored: Tensor, seed: int, index: Tensor) -> Tensor:
        """(B, C, S, S) as stored."""
        return stored

    def channels(self, stored: int) -> int:
        """Channels that the model sees, from those stored."""
        return stored

    def prepare(self) -> None:
        """Nothing to load."""

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, S, S) as they are: about [-1, 1], which a sample may leave by a little."""
        return latents


class VaeLatents:
    """Moments of an AutoencoderKL: a new posterior sample each epoch, as in REPA; decoding loads the VAE on first use."""

    def __init__(self, config: LatentConfig):
        self.config, self._vae = config, None

    def draw(self, stored: Tensor, seed: int, index: Tensor) -> Tensor:
        """Moments (B, 2C, S, S), mean then standard deviation, to scaled samples (B, C, S, S) fp32."""
        mean, std = stored.chunk(2, dim=1)
        noise = rng.normal(seed, index, Purpose.POSTERIOR, tuple(mean.shape[1:]))
        return (mean + std * noise - self.config.shift) * self.config.scale

    def channels(self, stored: int) -> int:
        """Half of what is stored."""
        if stored % 2:
            raise UserError(f"latents.npy has {stored} channels, but VAE moments come in pairs: --latents.kind pixels?")
        return stored // 2

    def prepare(self) -> None:
        """Load the VAE that decodes, if it is not there yet. Raises `UserError` where it cannot be had."""
        self._vae = self._vae or load_vae(self.config.vae)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, C, S, S) to images (B, 3, 8S, 8S) in [-1, 1]."""
        self.prepare()
        vae = self._vae.to(latents.device)
        return vae.decode(latents.float() / self.config.scale + self.config.shift).sample.clamp(-1, 1)


def load_vae(name: str):
    """diffusers' AutoencoderKL from a hub name or a local folder, frozen, fp32."""
    try:
        from diffusers import AutoencoderKL
    except ImportError:
        raise UserError("decoding needs diffusers: pip install 'erw[vae]'") from None
    try:
        return AutoencoderKL.from_pretrained(name).eval().requires_grad_(False)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"--latents.vae '{name}' cannot be had: {first} (offline? name a local folder)") from None


def latent_space(config: LatentConfig) -> Pixels | VaeLatents:
    """The space that ``config`` names."""
    return Pixels() if config.kind == "pixels" else VaeLatents(config)
