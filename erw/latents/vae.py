"""diffusers' autoencoders, frozen: images to moments or latents, and back."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from erw.cache import digest
from erw.errors import UserError
from erw.types import StoredLatents

Precision = Literal["fp32", "bf16"]

# What the hub says of the VAE of the papers' presets, so that training from moments needs no hub.
_KNOWN = {"stabilityai/sd-vae-ft-ema": (0.18215, 4, 8), "stabilityai/sd-vae-ft-mse": (0.18215, 4, 8)}


class Vae:
    """An AutoencoderKL or AutoencoderTiny on a device. ``facts``: what a dataset of its latents is.

    fp32 weights; bf16 is autocast, under which norms stay fp32. Bits depend on precision, memory format, batch size and
    device; not on the run. Slicing and tiling are off: both change the result or the speed.
    """

    def __init__(self, name: str, network: Any, device: torch.device, precision: Precision, channels_last: bool):
        self.facts = replace(_facts(name, network.config), digest=digest(network.state_dict()))
        self.device, self.precision = device, precision
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self.network = network.eval().requires_grad_(False).to(device).to(memory_format=self._format)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8, or fp32 in [-1, 1], to moments (B, 2C, h, w) fp32, mean then standard deviation; of an
        AutoencoderTiny, which has none, latents (B, C, h, w)."""
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

        stride = self.facts.stride
        if images.shape[-1] % stride or images.shape[-2] % stride:
            raise UserError(
                f"{self.facts.vae} takes images whose sides are multiples of {stride}, not {tuple(images.shape[-2:])}"
            )
        images = images.to(self.device)
        x = images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images.float()
        with self._autocast():
            out = self.network.encode(x.contiguous(memory_format=self._format))
        if self.facts.kind == "latents":
            return out.latents.float().contiguous()
        posterior = DiagonalGaussianDistribution(out.latent_dist.parameters.float())
        return torch.cat([posterior.mean, posterior.std], dim=1).contiguous()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) fp32, scale and shift taken off, to images (B, 3, H, W) fp32 in [-1, 1]."""
        with self._autocast():
            out = self.network.decode(latents.to(self.device).contiguous(memory_format=self._format)).sample
        return out.float().clamp(-1, 1).contiguous()

    def to(self, device: torch.device) -> "Vae":
        """On ``device``, this one itself."""
        self.device, self.network = device, self.network.to(device)
        return self

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")


def open_vae(name: str, device: torch.device, precision: Precision = "fp32", channels_last: bool = False) -> Vae:
    """The VAE by hub name, hub name:subfolder or local folder. Raises `UserError` where it cannot be had whole."""
    config = _read_config(name)
    try:
        network, report = _class_of(name, config).from_pretrained(
            **_place(name), output_loading_info=True, low_cpu_mem_usage=False
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise _cannot_be_had(name, error) from None
    faults = [key for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in report.get(kind, ())]
    if faults:
        raise UserError(f"--latents.vae '{name}': its weights do not fit its config, the first is {faults[0]}")
    return Vae(name, network, device, precision, channels_last)


def vae_facts(name: str) -> StoredLatents:
    """What the VAE's config says, without its weights; for the papers' VAE without a look at the hub."""
    if name in _KNOWN:
        scale, channels, stride = _KNOWN[name]
        return StoredLatents(kind="vae", vae=name, scale=scale, shift=0.0, channels=channels, stride=stride)
    config = _read_config(name)
    _class_of(name, config)
    return _facts(name, config)


def _diffusers() -> Any:
    try:
        import diffusers
    except ImportError:
        raise UserError("a VAE needs diffusers: pip install 'erw[vae]'") from None
    return diffusers


def _place(name: str) -> dict[str, str]:
    repository, _, subfolder = name.partition(":")
    where = {"pretrained_model_name_or_path": repository}
    return where | {"subfolder": subfolder} if subfolder else where


def _read_config(name: str) -> dict[str, Any]:
    place = _place(name)
    folder = Path(place["pretrained_model_name_or_path"], place.get("subfolder", ""))
    try:
        if folder.is_dir():  # without diffusers, which is slow to import
            return json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return _diffusers().AutoencoderKL.load_config(**_place(name))
    except (OSError, ValueError) as error:
        raise _cannot_be_had(name, error) from None


def _cannot_be_had(name: str, error: Exception) -> UserError:
    first = (str(error).strip() or repr(error)).splitlines()[0][:200]
    return UserError(f"--latents.vae '{name}' cannot be had: {first} (offline? name a local folder)")


def _class_of(name: str, config: dict[str, Any]) -> Any:
    kind = config.get("_class_name")
    if kind not in ("AutoencoderKL", "AutoencoderTiny"):
        raise UserError(f"--latents.vae '{name}' is a {kind}: AutoencoderKL and AutoencoderTiny are what can be used")
    return getattr(_diffusers(), kind)


def _facts(name: str, config: dict[str, Any]) -> StoredLatents:
    tiny = config.get("_class_name") == "AutoencoderTiny"
    scale, shift = config.get("scaling_factor"), config.get("shift_factor")
    # diffusers' own defaults, which configs leave out.
    scale, shift = (1.0 if tiny else 0.18215) if scale is None else scale, 0.0 if shift is None else shift
    if config.get("latents_mean") and config.get("latents_std"):
        shift, scale = tuple(config["latents_mean"]), tuple(scale / std for std in config["latents_std"])
    blocks = config.get("encoder_block_out_channels" if tiny else "block_out_channels")
    return StoredLatents(
        kind="latents" if tiny else "vae",
        vae=name,
        scale=scale,
        shift=shift,
        channels=config["latent_channels"],
        stride=2 ** (len(blocks) - 1),
    )
