"""Networks that turn images into features. A new one is a function here and one entry in ``FEATURES``.

Every teacher of `erw.teachers` is one too: its class token where it has one, else the mean of its patch tokens.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from erw.errors import UserError
from erw.settings import nearest
from erw.teachers import TEACHERS, TeacherConfig, load_teacher, prefix_of, teacher_digest


class Extractor(Protocol):
    """What every network offers. ``width`` is how many features; ``facts`` are for the protocol: which weights they are and
    how images are resized."""

    name: str
    width: int
    facts: dict[str, Any]

    def __call__(self, pixels: Tensor) -> dict[str, Tensor]:
        """``features`` (B, D) fp32 of ``pixels`` (B, 3, H, W) uint8; Inception gives ``spatial`` and ``logits`` as well."""
        ...


def load_extractor(name: str, device: torch.device, weights: Path | None = None) -> Extractor:
    """The network ``name`` on ``device``. ``weights`` is the file of a network that does not come with one.

    Raises `UserError` for an unknown name and for weights that cannot be had.
    """
    if name not in FEATURES and not prefix_of(name):
        raise UserError(f"--features '{name}' is not known; {nearest(name, FEATURES)}")
    if weights is not None and name != "inception":
        raise UserError(f"--weights is the file of --features inception, not of {name}: leave it out")
    return FEATURES.get(name, _teacher)(name, device, weights)


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """fp32 that is fp32: no autocast, no TF32. A figure must not depend on what training had switched on."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.no_grad(),
            torch.autocast(device.type, enabled=False),
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=False, allow_tf32=False),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def signed(pixels: Tensor) -> Tensor:
    """(B, C, H, W) uint8 to fp32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def resized(images: Tensor, side: int) -> Tensor:
    """(B, C, H, W) to (B, C, side, side): bicubic, antialiased where it shrinks."""
    return F.interpolate(images, side, mode="bicubic", antialias=True, align_corners=False)


class TeacherFeatures:
    """A teacher's description of a whole image."""

    def __init__(self, name: str, device: torch.device):
        self.name, self.device = name, device
        self.teacher = load_teacher(name, device, config=TeacherConfig(precision="fp32"))
        self.width, whole = self.teacher.spec.width, self.teacher.spec.has_class_token
        self.facts = {
            "network": f"teacher {name}, {'its class token' if whole else 'the mean of its patch tokens'}",
            "resize": "the teacher's own",
            # A user's own encoder may be trained anew under the same name.
            "weights": teacher_digest(name) or "the teacher's own",
        }

    def __call__(self, pixels: Tensor) -> dict[str, Tensor]:
        pixels = pixels.to(self.device)
        with full_precision(self.device):
            # The embedded teachers see the model's own images, one channel in [-1, 1].
            of_digits = TEACHERS.get(self.name) == "digits"
            encoded = self.teacher.encode(signed(pixels[:, :1]) if of_digits else pixels)
            whole = encoded.class_token if self.teacher.spec.has_class_token else encoded.tokens.mean(dim=1)
            return {"features": whole.float()}


def _inception(name: str, device: torch.device, weights: Path | None) -> Extractor:
    from erw.evaluate.inception import Inception, find_weights

    return Inception(find_weights(weights), device)


def _lite(name: str, device: torch.device, weights: Path | None) -> Extractor:
    from erw.evaluate.lite import EfficientNetLite

    return EfficientNetLite(device)


def _teacher(name: str, device: torch.device, weights: Path | None) -> Extractor:
    return TeacherFeatures(name, device)


FEATURES: dict[str, Callable[[str, torch.device, Path | None], Extractor]] = {
    **dict.fromkeys(TEACHERS, _teacher),
    "inception": _inception,
    "efficientnet-lite0": _lite,
}
