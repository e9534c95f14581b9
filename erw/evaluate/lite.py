"""EfficientNet-Lite0's pooled features, which need no hub."""

import torch
from torch import Tensor

from erw.evaluate.features import full_precision, resized
from erw.teachers.lite import packaged_network

SIDE, SMALL_SIDE, SMALL = 224, 96, 64


class EfficientNetLite:
    """The teacher's network whole; the 1280 features before the classifier.

    Images are enlarged or shrunk to 224 pixels, those of up to 64 pixels to 96 only, which costs a fifth and loses
    nothing that they hold.
    """

    name, width = "efficientnet-lite0", 1280

    def __init__(self, device: torch.device):
        network, weights = packaged_network()
        self.network, self.device = network.to(device), device
        self.facts = {
            "network": "EfficientNet-Lite0, 1280 pooled features",
            "resize": f"bicubic, antialiased, to {SIDE}; images of up to {SMALL} pixels to {SMALL_SIDE}",
            "weights": weights,
        }

    def __call__(self, pixels: Tensor) -> dict[str, Tensor]:
        side = SMALL_SIDE if max(pixels.shape[-2:]) <= SMALL else SIDE
        with full_precision(self.device):
            # Mean and standard deviation 0.5 a channel: [-1, 1].
            images = resized(pixels.to(self.device).float(), side) / 127.5 - 1
            return {"features": self.network.forward_features(images).mean(dim=(2, 3))}
