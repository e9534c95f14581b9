"""Folders of autoencoders, diffusers' classes with random weights: the hub is not reachable where tests run."""

from pathlib import Path

import torch


def save_kl(folder: Path, channels: int = 4, levels: int = 4, width: int = 16, **config) -> str:
    """A small AutoencoderKL of stride 2^(levels - 1). Returns the folder."""
    from diffusers import AutoencoderKL

    blocks = {"down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = AutoencoderKL(
            block_out_channels=[width] * levels, latent_channels=channels, norm_num_groups=4, **blocks, **config
        )
    vae.save_pretrained(folder)
    return str(folder)


def save_tiny(folder: Path) -> str:
    """A small AutoencoderTiny of stride 8. Returns the folder."""
    from diffusers import AutoencoderTiny

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4,
                              num_encoder_blocks=(1, 1, 1, 1), num_decoder_blocks=(1, 1, 1, 1))  # fmt: skip
    vae.save_pretrained(folder)
    return str(folder)
