"""Settings of the latent space, and where what the user left open is taken from."""

from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Literal

import torch

from erw.errors import UserError
from erw.latents.vae import open_vae, vae_facts
from erw.settings import setting
from erw.types import PerChannel, StoredLatents

# One encoder, whose decoder was tuned twice: latents of the one are latents of the other.
_SD_VAES = {"sd-vae-ft-ema", "sd-vae-ft-mse"}
_WORDS = {"pixels": "pixels", "vae": "moments of a VAE", "latents": "latents without moments"}


def _numbers(name: str):
    def parse(text: str) -> PerChannel | None:
        if text.lower() == "none":
            return None
        try:
            numbers = tuple(float(part) for part in text.split(",") if part)
            return numbers if len(numbers) > 1 else numbers[0]
        except (ValueError, IndexError):
            raise UserError(f"--latents.{name} takes none, a number, or one a channel with commas, not '{text}'") from None

    return parse


@dataclass(frozen=True, kw_only=True)
class LatentConfig:
    """Settings of the latent space."""

    kind: Literal["pixels", "vae", "latents"] = setting(
        "pixels", "pixels: images in [-1, 1]; vae: moments in, decoded out; latents: as vae, but stored without moments"
    )
    vae: str = setting(
        "stabilityai/sd-vae-ft-ema", "diffusers AutoencoderKL or AutoencoderTiny: hub name, hub name:subfolder, or local folder"
    )
    scale: float | tuple[float, ...] | None = setting(
        None, "the model sees (latent - shift) * scale; none: the dataset's, else the VAE's own", parse=_numbers("scale")
    )
    shift: float | tuple[float, ...] | None = setting(None, "see scale", parse=_numbers("shift"))


def settled(config: LatentConfig, stored: StoredLatents | None) -> LatentConfig:
    """``config`` with scale and shift: the user's, else those that the dataset was ``stored`` with, else the VAE's own.

    Raises `UserError` where the settings contradict the dataset; ``stored`` is None for one that does not say.
    """
    if stored is not None:
        _check_agrees(config, stored)
        config = replace(config, scale=stored.scale, shift=stored.shift)
    if config.kind == "pixels" or None not in (config.scale, config.shift):
        return config
    facts = vae_facts(config.vae)
    scale = facts.scale if config.scale is None else config.scale
    return replace(config, scale=scale, shift=facts.shift if config.shift is None else config.shift)


def _check_agrees(config: LatentConfig, stored: StoredLatents) -> None:
    if config.kind != stored.kind:
        raise UserError(
            f"the dataset holds {_WORDS[stored.kind]}, --latents.kind is {config.kind}: set --latents.kind {stored.kind}"
        )
    if config.kind == "pixels":
        return
    if not _same_encoder(config.vae, stored):
        raise UserError(
            f"the dataset was encoded by {stored.vae}, --latents.vae is {config.vae}: set --latents.vae {stored.vae}, or"
            " prepare the dataset with the other"
        )
    for name in ("scale", "shift"):
        ours, theirs = getattr(config, name), getattr(stored, name)
        if ours is not None and ours != theirs:
            raise UserError(
                f"--latents.{name} is {ours}, the dataset's manifest says {theirs}: leave the option out, or mend the manifest"
            )


def _same_encoder(name: str, stored: StoredLatents) -> bool:
    """By name; a local folder, which may have moved, by its weights."""
    if name == stored.vae or {PurePath(name).name, PurePath(stored.vae).name} <= _SD_VAES:
        return True
    return bool(stored.digest) and Path(name).is_dir() and open_vae(name, torch.device("cpu")).facts.digest == stored.digest
