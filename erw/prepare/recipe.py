"""What decides the bytes of a prepared dataset, besides its source."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from erw.errors import UserError
from erw.prepare.decode import MAX_PIXELS, PILLOWS_LIMIT
from erw.prepare.listing import Listing
from erw.rng import philox
from erw.settings import setting
from erw.teachers import TeacherConfig, teacher_specs

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The options of ``erw prepare`` that decide bytes. Given twice, the same source becomes the same files, whatever the
    processes and however often it was stopped."""

    size: int = setting(256, "side of the images, cropped as ADM does")
    latents: Literal["vae", "pixels"] = setting("vae", "vae: moments (mean and std) of an autoencoder; pixels: uint8 images")
    vae: str = setting("stabilityai/sd-vae-ft-ema", "diffusers' autoencoder: hub name or local folder")
    teachers: str = setting("none", "teachers whose patch tokens are stored, with commas between; or none")
    teacher_file: str = setting("none", "none: the hub's weights; or a local file of weights, NAME=FILE with commas between")
    teacher_side: int = setting(0, "pixels that images are resized to for a teacher; 0: its patch size times the grid")
    grid: int = setting(0, "tokens on a side of the model to come; 0: a sixteenth of the size, of pixels a half")
    class_token: bool = setting(False, "store the teachers' class tokens too, of those that have one")
    images: bool = setting(False, "store the cropped images as uint8 too, for teachers that run online")
    flips: bool = setting(False, "store every image mirrored too, as a row of its own")
    precision: Literal["fp32", "bf16"] = setting("fp32", "what autoencoder (autocast) and teachers compute in")
    dtype: Literal["fp16", "bf16", "fp32"] = setting("fp16", "what moments and features are stored in")
    batch: int = setting(32, "images encoded at once; another number rounds otherwise")
    shard: int = setting(0, "images of a shard, the unit of work, all that a kill loses; 0: 256 with features, else 1024")
    order: Literal["shuffled", "source"] = setting("shuffled", "order of the rows: shuffled once, or as in the source")
    orient: bool = setting(False, "turn images as their EXIF data say; published ImageNet crops do not")
    max_pixels: int = setting(MAX_PIXELS, "images of more pixels are left out")

    def __post_init__(self):
        for name, least in (("size", 1), ("batch", 1), ("max_pixels", 1), ("shard", 0), ("grid", 0)):
            if getattr(self, name) < least:
                raise UserError(f"--{name.replace('_', '-')} must be at least {least}, not {getattr(self, name)}")
        if self.max_pixels > PILLOWS_LIMIT:
            raise UserError(f"--max-pixels goes up to {PILLOWS_LIMIT:,}, beyond which Pillow opens nothing")
        specs = teacher_specs(self.teacher, self.token_grid)
        if self.class_token and not any(spec.has_class_token for spec in specs):
            raise UserError("--class-token needs teachers that have one: name them with --teachers")

    @property
    def shard_images(self) -> int:
        """Images of a shard."""
        return self.shard or (256 if self.teacher.names or self.images else 1024)

    @property
    def token_grid(self) -> int:
        """Tokens on a side of the model that features are for."""
        return self.grid or max(1, self.size // (16 if self.latents == "vae" else 2))

    @property
    def teacher(self) -> TeacherConfig:
        """The teachers as training names them."""
        return TeacherConfig(name=self.teachers, file=self.teacher_file, side=self.teacher_side, precision=self.precision)


def work_order(listing: Listing, shuffled: bool) -> np.ndarray:
    """(N,) numbers of images in the order of the dataset's rows, a function of the listing's size and blocks alone.

    ``shuffled``: blocks in random order, so that a shard, and what training shuffles at a time, holds many classes.
    Images of one block stay together, because they are read together.
    """
    count = len(listing.names)
    if not shuffled:
        return np.arange(count)
    lengths = np.array(listing.blocks or np.ones(count, np.int64))
    index = torch.arange(len(lengths))
    zero = torch.zeros_like(index)
    order = philox(0, (index, zero, zero, zero))[0].argsort(stable=True).numpy()
    starts = np.cumsum(lengths) - lengths
    return np.concatenate([np.arange(starts[block], starts[block] + lengths[block]) for block in order])
