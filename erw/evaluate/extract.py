"""Features of a whole set of images."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from erw.evaluate.features import Extractor
from erw.evaluate.images import Images

PART = 50


@dataclass(frozen=True)
class Extracted:
    """What an extractor made of N images, fp32 on the CPU: ``features`` (N, D), Inception's ``spatial`` (N, 2023) and
    ``logits`` (N, 1008), and ``sha256`` of the pixels, the same whatever file they came from."""

    features: Tensor
    spatial: Tensor | None
    logits: Tensor | None
    sha256: str


def pixel_digest(images: Images) -> "hashlib._Hash":
    """A SHA-256 that the bytes of all pixels are still to be added to."""
    return hashlib.sha256(str(images.shape).encode())


def extract(images: Images, extractor: Extractor, progress: bool = False) -> Extracted:
    """Run ``extractor`` over ``images``; a grey channel is shown to it three times."""
    digest, found = pixel_digest(images), []
    for part in tqdm(images.parts(PART), total=-(-images.count // PART), unit="part", desc=images.name, disable=not progress):
        digest.update(part.tobytes())
        pixels = torch.tensor(part).permute(0, 3, 1, 2)
        outputs = extractor(pixels.expand(-1, 3, -1, -1))
        found.append({name: tensor.float().cpu() for name, tensor in outputs.items()})
    whole = {name: torch.cat([part[name] for part in found]) for name in found[0]}
    return Extracted(whole["features"], whole.get("spatial"), whole.get("logits"), digest.hexdigest())
