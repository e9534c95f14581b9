"""Teachers from timm. Images come as (B, 3, S, S) uint8."""

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from erw.errors import UserError
from erw.types import TeacherSpec

# name: (timm model, image side it is fed)
_MODELS = {"dinov2-b": ("vit_base_patch14_dinov2.lvd142m", 224)}


class TimmTeacher(nn.Module):
    """A timm vision transformer that yields its normalised patch tokens."""

    def __init__(self, name: str, model: nn.Module, side: int):
        super().__init__()
        self.model, self.side = model, side
        config = model.pretrained_cfg
        self.register_buffer("mean", torch.tensor(config["mean"]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(config["std"]).view(1, 3, 1, 1))
        self.spec = TeacherSpec(name=name, width=model.embed_dim, grid=model.patch_embed.grid_size[0])

    @torch.no_grad()
    def tokens(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 to (B, grid^2, width): resized bicubically, the encoder's own normalisation."""
        return self._features(images)[:, self.model.num_prefix_tokens :]

    @torch.no_grad()
    def class_token(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 to (B, width): the encoder's token for the whole image, of the same forward."""
        return self._features(images)[:, 0]

    def _features(self, images: Tensor) -> Tensor:
        x = F.interpolate(images.float() / 255, self.side, mode="bicubic", antialias=True, align_corners=False)
        return self.model.forward_features((x - self.mean) / self.std)


def load_teacher(name: str, device: torch.device) -> TimmTeacher:
    """The named encoder with its pretrained weights, frozen. Raises `UserError` where they cannot be had."""
    model_name, side = _MODELS[name]
    try:
        model = timm.create_model(model_name, pretrained=True, img_size=side, num_classes=0)
    except (OSError, RuntimeError, ValueError) as error:
        first = str(error).strip().splitlines()[0][:120]
        raise UserError(
            f"--teacher.name {name}: the weights of timm's {model_name} cannot be had ({first}): offline, use features"
            " cached in the dataset, or fill the hub's cache first"
        ) from None
    return TimmTeacher(name, model, side).eval().requires_grad_(False).to(device)
