"""Encoders that ``erw encoder`` trained on a user's own images, by the file that it wrote: ``encoder:FILE``.

The file is safetensors; its metadata say what the network is and how it came about (`EncoderFile`).
"""

import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from erw.cache import Weights, digest
from erw.errors import UserError
from erw.files import whole
from erw.flops import measured_forward
from erw.settings import from_dict
from erw.teachers.base import Encoded, TeacherConfig, held_bytes, resampled, resized, unit_images
from erw.teachers.contrastive import Residual
from erw.types import TeacherSpec

PREFIX = "encoder:"
STRIDE = 4
_FORMAT = "erw-encoder-1"
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What decides an encoder's network. ``side``: pixels of the images it takes, a multiple of 4."""

    side: int
    width: int = 32  # channels at half the side, twice as many at a quarter
    blocks: int = 3  # residual ones at a quarter of the side
    features: int = 128  # channels of a token


@dataclass(frozen=True, kw_only=True)
class Origin:
    """How an encoder came about. FLOPs: 1 multiply-add = 2, matmuls and convolutions; ``dataset_sha256``: of its pixels."""

    kind: str
    images_seen: int
    batch: int
    seed: int
    training_flops: int
    training_seconds: float
    final_loss: float
    dataset_rows: int
    dataset_sha256: str
    device: str
    torch: str


@dataclass(frozen=True, kw_only=True)
class EncoderFile:
    """What a file says of itself; ``digest`` is its weights' SHA-256."""

    shape: Shape
    origin: Origin
    digest: str


class ImageEncoder(nn.Module):
    """(B, 3, S, S) images in [-1, 1] to a feature map (B, features, S/4, S/4).

    The last norm has no gain, bias or rectifier, for `erw.teachers.digits.Encoder`'s reason: tokens spread around zero.
    """

    def __init__(self, shape: Shape):
        super().__init__()
        width, deep = shape.width, 2 * shape.width
        self.layers = nn.Sequential(
            *_halved(3, width),
            Residual(width),
            *_halved(width, deep),
            *(Residual(deep) for _ in range(shape.blocks)),
            nn.Conv2d(deep, shape.features, 3, padding=1, bias=False),
            nn.BatchNorm2d(shape.features, affine=False),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def _halved(before: int, after: int) -> list[nn.Module]:
    return [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]


def write_encoder(path: Path, weights: Weights, shape: Shape, origin: Origin) -> None:
    """Whole or not at all. Raises `UserError` where ``path`` cannot be written."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    facts = EncoderFile(shape=shape, origin=origin, digest=digest(weights))
    try:
        with whole(path) as file:
            file.write(save(weights, {"format": _FORMAT, "facts": json.dumps(asdict(facts))}))
    except OSError as error:
        raise UserError(f"--out {path} cannot be written: {error.strerror or error}: name another file") from None


def path_of(name: str) -> Path:
    """The file that ``encoder:FILE`` names."""
    return Path(name.removeprefix(PREFIX)).expanduser()


def describe(name: str) -> EncoderFile:
    """What the file of ``encoder:FILE`` says, without its weights. Raises `UserError` for one that is missing, cut short or
    not of ``erw encoder``."""
    path = path_of(name)
    try:
        state = path.stat()
    except OSError:
        raise UserError(f"teacher {name}: {path} is not there: train it with erw encoder DATASET --out {path}") from None
    return _described(name, path, state.st_mtime_ns, state.st_size)


@lru_cache
def _described(name: str, path: Path, changed: int, size: int) -> EncoderFile:
    metadata, _ = _opened(name, path, weights=False)
    if metadata.get("format") != _FORMAT:
        raise UserError(f"teacher {name}: {path} was not written by erw encoder, or by another version of it")
    try:
        return from_dict(EncoderFile, json.loads(metadata["facts"]))
    except (ValueError, KeyError, UserError) as error:
        raise UserError(f"teacher {name}: {path} does not say what it is ({error}): train it again with erw encoder") from None


def _opened(name: str, path: Path, *, weights: bool) -> tuple[dict[str, str], Weights]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys() if weights}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        first = str(error).splitlines()[0][:120]
        raise UserError(
            f"teacher {name}: {path} is cut short or no safetensors file ({first}): copy it again, or train it with erw encoder"
        ) from None


def read_encoder(name: str) -> tuple[ImageEncoder, EncoderFile]:
    """The network with its weights, in eval mode on the CPU. Raises `UserError` as `describe` does, and for weights that are
    not those that were written."""
    found, path = describe(name), path_of(name)
    _, weights = _opened(name, path, weights=True)
    if digest(weights) != found.digest:
        raise UserError(f"teacher {name}: {path} is damaged (its checksum is wrong): copy it again, or train it again")
    with torch.device("meta"):
        encoder = ImageEncoder(found.shape)
    encoder.load_state_dict(weights, assign=True)
    return encoder.eval().requires_grad_(False), found


def spec_of(name: str, grid: int, config: TeacherConfig) -> TeacherSpec:
    """The teacher's shape on a model's token grid, from the file's head."""
    return TeacherSpec(name=name, width=describe(name).shape.features, grid=grid)


def flops_of(name: str, grid: int, config: TeacherConfig) -> int:
    """Its forward for one image, counted without weights."""
    return _count(describe(name).shape)


def bytes_of(name: str, grid: int, config: TeacherConfig) -> int:
    """Of its weights and buffers."""
    with torch.device("meta"):
        return held_bytes(ImageEncoder(describe(name).shape), config.precision)


def digest_of(name: str) -> str:
    """SHA-256 of the weights that the file holds now, from its head."""
    return describe(name).digest


@lru_cache
def _count(shape: Shape) -> int:
    with torch.device("meta"):
        return measured_forward(ImageEncoder(shape).eval(), torch.empty(1, 3, shape.side, shape.side))


class EncoderTeacher(nn.Module):
    """The trained encoder's feature map, resampled to ``grid``. It has no class token."""

    def __init__(self, name: str, encoder: ImageEncoder, found: EncoderFile, grid: int, *, compile: bool = False):
        super().__init__()
        self.encoder, self.found = encoder, found
        self.spec = TeacherSpec(name=name, width=found.shape.features, grid=grid)
        self.training_flops, self.training_seconds = found.origin.training_flops, found.origin.training_seconds
        self._forward = torch.compile(encoder, dynamic=False) if compile else encoder

    def train(self, mode: bool = True) -> "EncoderTeacher":
        """Stay in eval mode: batch statistics would make tokens depend on the batch."""
        return super().train(False)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Encoded:
        """(B, 1 or 3, S, S) uint8, or floating in [-1, 1], to tokens (B, grid^2, features) in the weights' dtype."""
        x = resized(unit_images(images), self.found.shape.side) * 2 - 1
        with torch.autocast(images.device.type, enabled=False):
            out = self._forward(x.to(next(self.encoder.parameters()).dtype).contiguous(memory_format=torch.channels_last))
        return Encoded(resampled(out.flatten(2).transpose(1, 2), self.spec.grid), None)

    def tokens(self, images: Tensor) -> Tensor:
        """The tokens alone."""
        return self.encode(images).tokens

    @property
    def flops(self) -> int:
        """Its forward for one image."""
        return _count(self.found.shape)

    def identity(self) -> dict[str, Any]:
        """See `erw.teachers.base.Teacher`."""
        return {
            "name": self.spec.name,
            **asdict(self.found),
            "weights": path_of(self.spec.name).name,
            "width": self.spec.width,
            "grid": self.spec.grid,
            "has_class_token": False,
            "side": self.found.shape.side,
            "patches": self.found.shape.side // STRIDE,
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
            "resize": "bicubic",
            "flops_per_image": self.flops,
        }


def load_teacher(name: str, device: torch.device, grid: int, config: TeacherConfig) -> EncoderTeacher:
    """The teacher on ``device``. Raises `UserError` as `read_encoder` does."""
    if name in config.files:
        raise UserError(f"--teacher.file is not for {name}: its file is in its name")
    if config.side not in (0, describe(name).shape.side):
        raise UserError(f"--teacher.side {config.side} is not for {name}, which sees {describe(name).shape.side} pixels")
    encoder, found = read_encoder(name)
    teacher = EncoderTeacher(name, encoder, found, grid, compile=config.compile)
    return teacher.to(device, _DTYPES[config.precision]).to(memory_format=torch.channels_last)
