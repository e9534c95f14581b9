"""The embedded teachers: a small convolutional encoder of 8x8 digits, trained on the spot on the train split.

``digits-contrastive`` sees images only (SimCLR, Chen et al., arXiv 2002.05709); ``digits-supervised`` is the same
encoder trained to classify. Both yield a 4x4 grid of patch tokens, whose mean the loss looked at.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from erw.cache import Facts, Weights, cached_weights, digest, reproducible, source_digest
from erw.data import digits
from erw.data.digits import Augmentation, augment
from erw.errors import UserError
from erw.flops import measured_forward
from erw.teachers import contrastive
from erw.teachers.base import Encoded, TeacherConfig, held_bytes
from erw.teachers.contrastive import Residual, Schedule, fit, nt_xent
from erw.types import TeacherSpec

WIDTH, GRID = 96, 4
_SEED = 0
_TEMPERATURE = 0.2
_AUGMENTATION = Augmentation(rotation=20, scale=0.2, shear=0.2, shift=1.2, contrast=0.3, noise=0.15, cutout=0.5)
CONTRASTIVE = Schedule(steps=120, batch=128)
SUPERVISED = Schedule(steps=120, batch=128)


class Encoder(nn.Module):
    """(B, 1, 8, 8) images to (B, 16, 96) patch tokens in row order.

    The last norm has no gain, bias or rectifier, so over the data every channel has mean 0 and variance 1: cosines
    between tokens then tell them apart, where rectified tokens would all lean the same way.
    """

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            Residual(64),
            nn.Conv2d(64, WIDTH, 3, padding=1, bias=False),
            nn.BatchNorm2d(WIDTH, affine=False),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).flatten(2).transpose(1, 2)


class DigitsTeacher(nn.Module):
    """A trained, frozen `Encoder`, always in eval mode.

    ``spec`` tells its shape; ``training_flops`` and ``training_seconds`` what its training cost (1 multiply-add = 2
    FLOP, matmuls and convolutions as torch's counter sees them; seconds on the machine that trained it).
    """

    def __init__(self, name: str, encoder: Encoder, facts: Facts):
        super().__init__()
        self.spec = spec_of(name)
        self.training_flops = int(facts["training_flops"])
        self.training_seconds = float(facts["training_seconds"])
        self.encoder = encoder.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> "DigitsTeacher":
        """Stay in eval mode: batch statistics would make tokens depend on the batch."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        return self.tokens(images)

    @torch.no_grad()
    def tokens(self, images: Tensor) -> Tensor:
        """(B, 1, 8, 8) in [-1, 1] to (B, 16, 96) fp32, in fp32 under autocast too."""
        if tuple(images.shape[1:]) != (1, digits.SIDE, digits.SIDE):
            raise UserError(f"--teacher.name {self.spec.name} takes (B, 1, 8, 8) images, not {tuple(images.shape)}")
        with torch.autocast(images.device.type, enabled=False):
            return self.encoder(images.float())

    def encode(self, images: Tensor) -> Encoded:
        """The tokens; these teachers have no class token."""
        return Encoded(self.tokens(images), None)

    @property
    def flops(self) -> int:
        """Its forward for one image."""
        return flops_of(self.spec.name)

    def identity(self) -> dict[str, Any]:
        """See `erw.teachers.base.Teacher`."""
        return {
            "name": self.spec.name,
            "weights": "trained on the spot",
            "digest": digest(self.encoder.state_dict()),
            "width": WIDTH,
            "grid": GRID,
            "has_class_token": False,
            "flops_per_image": self.flops,
        }


def spec_of(name: str, grid: int = GRID, config: TeacherConfig | None = None) -> TeacherSpec:
    """Its shape: the digits' own grid, whatever the model's."""
    return TeacherSpec(name=name, width=WIDTH, grid=GRID)


def flops_of(name: str, grid: int = GRID, config: TeacherConfig | None = None) -> int:
    """Forward for one image, counted without weights."""
    with torch.device("meta"):
        return measured_forward(Encoder().eval(), torch.empty(1, 1, digits.SIDE, digits.SIDE))


def bytes_of(name: str, grid: int = GRID, config: TeacherConfig | None = None) -> int:
    """Of its weights and buffers."""
    with torch.device("meta"):
        return held_bytes(Encoder(), "fp32")


def load_teacher(name: str, device: torch.device | str, grid: int = GRID, config: TeacherConfig | None = None) -> DigitsTeacher:
    """The teacher ``name`` on ``device``; trained (on the CPU) where the cache does not have it yet.

    Raises `UserError` for an unknown name, and for a file of weights.
    """
    if config is not None and name in config.files:
        raise UserError(f"--teacher.file is not for {name}: it is trained on the spot")
    if name not in _TRAINERS:
        raise UserError(f"--teacher.name '{name}' is not a digits teacher: choose one of {', '.join(_TRAINERS)}")
    sources = source_digest(__file__, contrastive.__file__, digits.__file__)
    weights, facts = cached_weights(name, {"sources": sources}, _TRAINERS[name])
    # On the meta device no initial weights are drawn: the caller's random state stays as it was.
    with torch.device("meta"):
        encoder = Encoder()
    encoder.load_state_dict(weights, assign=True)
    return DigitsTeacher(name, encoder, facts).to(device)


def train_contrastive(images: Tensor, schedule: Schedule = CONTRASTIVE) -> tuple[Weights, Facts]:
    """Weights of an `Encoder` trained on ``images`` (N, 1, 8, 8) without labels, and what that cost."""
    with reproducible(_SEED):
        encoder = Encoder()
        head = nn.Sequential(nn.Linear(WIDTH, 128, bias=False), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 64))

        def loss(rows: Tensor, generator: torch.Generator) -> Tensor:
            views = torch.cat([augment(images[rows], _AUGMENTATION, generator) for _ in range(2)])
            return nt_xent(head(encoder(views).mean(dim=1)), _TEMPERATURE)

        return _fit(encoder, head, loss, len(images), schedule)


def train_supervised(images: Tensor, labels: Tensor, schedule: Schedule = SUPERVISED) -> tuple[Weights, Facts]:
    """Weights of an `Encoder` trained to classify ``images`` (N, 1, 8, 8), ``labels`` (N,) int64, and what that cost."""
    with reproducible(_SEED):
        encoder, head = Encoder(), nn.Linear(WIDTH, digits.NUM_CLASSES)

        def loss(rows: Tensor, generator: torch.Generator) -> Tensor:
            logits = head(encoder(augment(images[rows], _AUGMENTATION, generator)).mean(dim=1))
            return F.cross_entropy(logits, labels[rows], label_smoothing=0.1)

        return _fit(encoder, head, loss, len(images), schedule)


def linear_probe(teacher: DigitsTeacher) -> float:
    """Held-out accuracy of a logistic regression on mean tokens, fitted on the train split."""
    from sklearn.linear_model import LogisticRegression

    def mean_tokens(images: Tensor):
        return teacher.tokens(images.to(next(teacher.parameters()).device)).mean(dim=1).cpu().numpy()

    (images, labels), (held_out, answers) = digits.load("train"), digits.load("held_out")
    probe = LogisticRegression(max_iter=2000).fit(mean_tokens(images), labels.numpy())
    return float(probe.score(mean_tokens(held_out), answers.numpy()))


def _fit(
    encoder: Encoder, head: nn.Module, loss: Callable[[Tensor, torch.Generator], Tensor], samples: int, schedule: Schedule
) -> tuple[Weights, Facts]:
    """Train ``encoder`` and ``head`` on random batches of rows; the head is thrown away."""
    generator = torch.Generator().manual_seed(_SEED)
    batches = (torch.randperm(samples, generator=generator)[: schedule.batch] for _ in range(schedule.steps))
    facts = fit(encoder, head, lambda rows: loss(rows, generator), batches, schedule)
    return dict(encoder.state_dict()), facts


_TRAINERS: dict[str, Callable[[], tuple[Weights, Facts]]] = {
    "digits-contrastive": lambda: train_contrastive(digits.load("train")[0]),
    "digits-supervised": lambda: train_supervised(*digits.load("train")),
}
