"""Frozen encoders whose patch tokens methods align with. A new one is a new file and one line in ``TEACHERS``.

Cached features stay what they are; an encoder is loaded only where it has to run.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from erw.errors import UserError
from erw.settings import nearest, setting
from erw.types import TeacherSpec


class Teacher(Protocol):
    """What every teacher offers."""

    spec: TeacherSpec

    def tokens(self, images: Tensor) -> Tensor:
        """Patch tokens (B, grid^2, width) of images as its loader's file says, in row order, without gradient."""
        ...


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Settings of the teacher."""

    name: str = setting("none", "none, or teachers by name, with commas between; each gets a projector of its own")
    source: Literal["cached", "online"] = setting("cached", "features computed once, or by a forward in every step")

    @property
    def names(self) -> tuple[str, ...]:
        """The teachers, in the order of their projectors."""
        return () if self.name == "none" else tuple(self.name.split(","))


def _digits(name: str, device: torch.device) -> Teacher:
    from erw.teachers.digits import load_teacher

    return load_teacher(name, device)


def _timm(name: str, device: torch.device) -> Teacher:
    from erw.teachers.timm import load_teacher

    return load_teacher(name, device)


TEACHERS: dict[str, tuple[TeacherSpec, Callable[[str, torch.device], Teacher]]] = {
    "digits-contrastive": (TeacherSpec(name="digits-contrastive", width=96, grid=4), _digits),
    "digits-supervised": (TeacherSpec(name="digits-supervised", width=96, grid=4), _digits),
    "dinov2-b": (TeacherSpec(name="dinov2-b", width=768, grid=16), _timm),
}


def teacher_specs(config: TeacherConfig) -> tuple[TeacherSpec, ...]:
    """What is known of the named teachers without loading them."""
    for name in config.names:
        if name not in TEACHERS:
            raise UserError(f"--teacher.name '{name}' is not known; {nearest(name, TEACHERS)}")
    if len(set(config.names)) < len(config.names):
        raise UserError(f"--teacher.name {config.name} names a teacher twice: once is enough")
    return tuple(TEACHERS[name][0] for name in config.names)


def load_teacher(name: str, device: torch.device) -> Teacher:
    """The encoder itself, frozen on ``device``."""
    spec, load = TEACHERS[name]
    teacher = load(name, device)
    assert teacher.spec == spec, f"{name}: the registry says {spec}, the encoder {teacher.spec}"
    return teacher
