"""The few types that data, models and methods share."""

from dataclasses import dataclass, field, fields
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One micro-batch of one rank. B is the micro-batch size.

    latents   (B, C, H, W) as stored: what `erw.latents` draws the model's from; fp32, or uint8 pixels
    labels    (B,) int64
    index     (B,) int64, position of each sample in the training stream (0, 1, 2, ... over all epochs)
    features  teacher name to (W, N, D), its patch tokens of the clean images, N a square grid in row order
    images    (W, ...) or None: for teachers that run online
    first     row of the micro-batch's first image among the W; W is B unless the method wants more (`Method.group`)
    """

    latents: Tensor
    labels: Tensor
    index: Tensor
    features: dict[str, Tensor] = field(default_factory=dict)
    images: Tensor | None = None
    first: int = 0

    def to(self, device: torch.device) -> "Batch":
        """The same batch on ``device`` (asynchronous from pinned memory)."""

        def move(value):
            return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value

        moved = {f.name: move(getattr(self, f.name)) for f in fields(self)}
        return Batch(**moved | {"features": {name: move(tokens) for name, tokens in self.features.items()}})

    def pin_memory(self) -> "Batch":
        """The same batch in pinned memory; the loader calls this."""

        def pin(value):
            return value.pin_memory() if isinstance(value, Tensor) else value

        pinned = {f.name: pin(getattr(self, f.name)) for f in fields(self)}
        return Batch(**pinned | {"features": {name: pin(tokens) for name, tokens in self.features.items()}})


@dataclass(frozen=True)
class Targets:
    """What a method aligns with: for each teacher the tokens (W, N, D), and the row among the W of the first image.

    W is the micro-batch, or the groups that it lies in where negatives come from them (`Method.group`).
    """

    tokens: tuple[Tensor, ...]
    first: int = 0


@dataclass(frozen=True, kw_only=True)
class Phase:
    """What one training step computes. Two phases of different ``name`` never share an optimizer.

    name         shown in logs and checkpoints
    denoise      True: x_t at a random t and the velocity loss; False: the clean latent at t = 0, alignment only
    depth        last block that exists and runs; None: all of them and the final layer
    first        first block that exists and runs, where there is a depth
    taps         blocks (counted from 1) whose output the method wants to see
    coefficient  weight of the alignment loss; 0 means that nothing of the method is computed
    """

    name: str
    denoise: bool = True
    depth: int | None = None
    first: int = 1
    taps: tuple[int, ...] = ()
    coefficient: float = 0.0

    @property
    def aligns(self) -> bool:
        """Whether this phase needs the teacher and the method's heads."""
        return self.coefficient != 0.0

    @property
    def blocks(self) -> int | None:
        """How many blocks exist and run; None: all of them."""
        return None if self.depth is None else self.depth - self.first + 1


@dataclass(frozen=True, kw_only=True)
class TeacherSpec:
    """What a method must know of a teacher: its name, its feature width and the side of its token grid (the model's, where
    the teacher can be resampled to it). Whether it has a class token does not tell features apart."""

    name: str
    width: int
    grid: int
    has_class_token: bool = field(default=False, compare=False)


# One number for all channels, or one for each.
PerChannel = float | tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class StoredLatents:
    """What a dataset's ``latents`` are, as its manifest says under that key.

    kind          pixels; vae: moments, mean then standard deviation, 2 * channels of them; latents: drawn or deterministic
    vae           hub name or folder of the VAE that made them
    scale, shift  the model sees (latent - shift) * scale
    channels      of the latent, without moments
    stride        pixels of the image a pixel of the latent, a side
    digest        SHA-256 of the VAE's weights, where it was loaded
    """

    kind: Literal["pixels", "vae", "latents"]
    vae: str = ""
    scale: PerChannel = 1.0
    shift: PerChannel = 0.0
    channels: int
    stride: int = 1
    digest: str = field(default="", compare=False)


@dataclass(frozen=True)
class CachedTeacher:
    """Features that a dataset holds: of which teacher, and what its forward for one image cost in FLOPs.

    ``digest``: SHA-256 of its weights, empty where that was not noted.
    """

    spec: TeacherSpec
    flops: int
    digest: str = ""
