"""The space that the model works in: pixels as they are, or a VAE's latents."""

from erw.latents.config import LatentConfig, settled
from erw.latents.space import Pixels, VaeLatents, latent_space
from erw.latents.vae import Vae, open_vae, vae_facts

__all__ = ["LatentConfig", "Pixels", "Vae", "VaeLatents", "latent_space", "open_vae", "settled", "vae_facts"]
