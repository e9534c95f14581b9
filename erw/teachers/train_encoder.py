"""Trains an encoder of a user's own images without labels (SimCLR), for ``encoder:FILE`` to name it as a teacher."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from erw.cache import Weights
from erw.data.order import permutation
from erw.data.stream import Dataset
from erw.data.views import Views, view
from erw.environment import device_name
from erw.errors import UserError
from erw.settings import setting
from erw.teachers.base import resized, unit_images
from erw.teachers.contrastive import Schedule, fit, nt_xent
from erw.teachers.encoder import STRIDE, ImageEncoder, Origin, Shape

_TEMPERATURE = 0.2
_READ = 1024  # images at a time
_HEARD = 20  # steps between reports of the loss, each of which waits for the device
_LARGEST_SIDE = 64  # by default: what a small encoder is quick on


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Options of ``erw encoder``."""

    epochs: float = setting(20.0, "passes over the dataset")
    images: int = setting(0, "images to see in all, each in two views, instead of --epochs; 0: as --epochs says")
    batch: int = setting(256, "images of a step; each is told apart from the others of its batch")
    lr: float = setting(3e-3, "largest learning rate of AdamW")
    width: int = setting(32, "channels at half the images' side, twice as many at a quarter; a GPU has time for 128")
    blocks: int = setting(3, "residual blocks at a quarter of the side")
    features: int = setting(128, "channels of a token")
    side: int = setting(0, f"pixels that images are resized to; 0: the dataset's, {_LARGEST_SIDE} at most")
    seed: int = setting(0, "of weights, order and views; the same bits for a seed on one CPU with as many threads")

    def __post_init__(self):
        for name in ("batch", "width", "blocks", "features"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1, not {getattr(self, name)}")
        if self.batch < 2:
            raise UserError("--batch must be at least 2: an image is told apart from the others of its batch")
        if self.side < 0 or self.side % STRIDE:
            raise UserError(f"--side {self.side} is not a multiple of {STRIDE}, the stride of the feature map")
        if self.images < 0 or self.seed < 0 or not 0 < self.epochs < float("inf") or not 0 < self.lr < float("inf"):
            raise UserError("--epochs and --lr must be above 0, --images and --seed not negative")


def train_encoder(
    dataset: Dataset,
    config: EncoderConfig,
    device: torch.device,
    after: Callable[[int, int, float | None], None] = lambda images, planned, loss: None,
) -> tuple[Weights, Shape, Origin]:
    """Weights of an `ImageEncoder` trained on the pixels of ``dataset``, in bf16 (autocast), its shape and its origin.

    All images are held at once, ``side``^2 * 3 bytes each. ``after(images, planned, loss)`` hears of each step. Raises
    `UserError` for a dataset without pixels or of less than a batch.
    """
    shape = Shape(side=_side(dataset, config), width=config.width, blocks=config.blocks, features=config.features)
    images = read_images(dataset, shape.side)
    batch = min(config.batch, len(images))
    steps = max(1, round((config.images or config.epochs * len(images)) / batch))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        encoder, head = ImageEncoder(shape), _head(shape.features)
    encoder, head, held = encoder.to(device), head.to(device), images.to(device)
    generator = torch.Generator().manual_seed(config.seed)

    def loss(rows: Tensor) -> Tensor:
        chosen = held[rows.to(device)].float() / 255
        views = torch.cat([view(chosen, Views(), generator) for _ in range(2)]) * 2 - 1
        with torch.autocast(device.type, torch.bfloat16):
            projected = head(encoder(views.contiguous(memory_format=torch.channels_last)).mean(dim=(2, 3)))
        return nt_xent(projected.float(), _TEMPERATURE)

    last = [float("nan")]

    def heard(step: int, value: Tensor) -> None:
        due = step % _HEARD == 0 or step in (1, steps)
        last[0] = value.item() if due else last[0]
        if due and not np.isfinite(last[0]):
            raise UserError(f"the encoder's loss is {last[0]} after {step} steps: lower --lr")
        after(step * batch, steps * batch, last[0] if due else None)

    schedule = Schedule(steps=steps, batch=batch, lr=config.lr)
    facts = fit(encoder, head, loss, batches(len(images), batch, steps, config.seed), schedule, heard)
    origin = Origin(
        kind="simclr", images_seen=steps * batch, batch=batch, seed=config.seed, **facts, final_loss=last[0],
        dataset_rows=len(images), dataset_sha256=hashlib.sha256(images.numpy().data).hexdigest(),
        device=device_name(device), torch=torch.__version__,
    )  # fmt: skip
    return dict(encoder.state_dict()), shape, origin


def _head(features: int) -> nn.Module:
    """Where the loss looks; thrown away with what it need not know (SimCLR, Section 4.2)."""
    return nn.Sequential(
        nn.Linear(features, 2 * features, bias=False), nn.BatchNorm1d(2 * features), nn.ReLU(), nn.Linear(2 * features, 64)
    )


def _side(dataset: Dataset, config: EncoderConfig) -> int:
    if not dataset.has_images:
        raise UserError("the dataset holds no images: prepare it with --latents pixels, or with --images")
    if config.side:
        return config.side
    pixels = dataset.images(np.arange(1)).shape[-1]
    return max(STRIDE, min(pixels, _LARGEST_SIDE) // STRIDE * STRIDE)


def read_images(dataset: Dataset, side: int) -> Tensor:
    """All images of ``dataset``, (N, 3, side, side) uint8."""
    if len(dataset) < 2:
        raise UserError("an encoder is trained on two images at least: it tells them apart")
    parts = []
    for start in range(0, len(dataset), _READ):
        unit = resized(unit_images(dataset.images(np.arange(start, min(start + _READ, len(dataset))))), side)
        parts.append((unit.clamp(0, 1) * 255).round().to(torch.uint8))
    return torch.cat(parts)


def batches(images: int, batch: int, steps: int, seed: int) -> Iterator[Tensor]:
    """``steps`` batches of rows, (batch,) int64: each epoch a new order, its last images that fill no batch left out."""
    whole = images // batch
    for step in range(steps):
        place = step % whole * batch
        yield torch.from_numpy(permutation(seed, step // whole, images)[place : place + batch])
