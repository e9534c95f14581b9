"""The few types that data, models and methods share."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One micro-batch of one rank. B is the micro-batch size.

    latents   (B, C, H, W) fp32, scaled to unit variance, as the model sees them
    labels    (B,) int64
    index     (B,) int64, position of each sample in the training stream (0, 1, 2, ... over all epochs)
    features  (B, N, D) or None: the teacher's patch tokens of the clean image, N a square grid in row order
    images    (B, 3, H, W) uint8 or None: for a teacher that runs online
    """

    latents: Tensor
    labels: Tensor
    index: Tensor
    features: Tensor | None = None
    images: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """The same batch on ``device`` (asynchronous from pinned memory)."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return Batch(**{k: v if v is None else v.to(device, non_blocking=True) for k, v in values.items()})


@dataclass(frozen=True, kw_only=True)
class Phase:
    """What one training step computes. Two phases of different ``name`` never share an optimizer.

    name         shown in logs and checkpoints
    denoise      True: x_t at a random t and the velocity loss; False: the clean latent at t = 0, alignment only
    depth        number of blocks that exist and run; None: all of them and the final layer
    taps         blocks (counted from 1) whose output the method wants to see
    coefficient  weight of the alignment loss; 0 means that nothing of the method is computed
    """

    name: str
    denoise: bool = True
    depth: int | None = None
    taps: tuple[int, ...] = ()
    coefficient: float = 0.0

    @property
    def aligns(self) -> bool:
        """Whether this phase needs the teacher and the method's heads."""
        return self.coefficient != 0.0


@dataclass(frozen=True, kw_only=True)
class TeacherSpec:
    """What a method must know of a teacher: its name, its feature width and the side of its patch grid."""

    name: str
    width: int
    grid: int
