"""Frozen encoders whose patch tokens methods align with. A new one is a new file and one line in ``TEACHERS``.

A file of teachers has ``spec_of``, ``flops_of`` and ``bytes_of``, each of (name, grid, config) and without weights, and
``load_teacher(name, device, grid, config)``; where one name can mean other weights tomorrow, ``digest_of(name)`` as well.
Cached features stay what they are; an encoder is loaded only where it has to run, and no library of encoders before that.
"""

from importlib import import_module
from types import ModuleType

import torch

from erw.errors import UserError
from erw.settings import nearest
from erw.teachers.base import GRID, Encoded, Teacher, TeacherConfig
from erw.teachers.names import SHORT_NAMES
from erw.types import TeacherSpec

__all__ = ["GRID", "PREFIXES", "TEACHERS", "Encoded", "Teacher", "TeacherConfig", "load_teacher", "prefix_of",
           "teacher_bytes",
           "teacher_digest", "teacher_flops", "teacher_specs"]  # fmt: skip

_DEFAULTS = TeacherConfig()

# Name to the file that knows it.
TEACHERS: dict[str, str] = {
    "digits-contrastive": "digits",
    "digits-supervised": "digits",
    "efficientnet-lite0": "lite",
    **dict.fromkeys(SHORT_NAMES, "timm"),
}
# What a name may begin with, and the file that knows the rest.
PREFIXES = {"timm:": "timm", "encoder:": "encoder"}


def _file_of(name: str) -> ModuleType:
    file = TEACHERS.get(name) or PREFIXES.get(prefix_of(name))
    if file is None:
        raise UserError(
            f"--teacher.name '{name}' is not known; {nearest(name, TEACHERS)} timm:MODEL takes any of timm's, encoder:FILE what"
            " erw encoder trained"
        )
    return import_module(f"erw.teachers.{file}")


def prefix_of(name: str) -> str:
    """What of `PREFIXES` the name begins with; empty for none."""
    return next((prefix for prefix in PREFIXES if name.startswith(prefix)), "")


def teacher_specs(config: TeacherConfig, grid: int = GRID) -> tuple[TeacherSpec, ...]:
    """What is known of the named teachers, on a model's token ``grid``, without loading them."""
    files = [_file_of(name) for name in config.names]
    if len(set(config.names)) < len(config.names):
        raise UserError(f"--teacher.name {config.name} names a teacher twice: once is enough")
    return tuple(file.spec_of(name, grid, config) for file, name in zip(files, config.names, strict=True))


def teacher_flops(name: str, grid: int = GRID, config: TeacherConfig = _DEFAULTS) -> int:
    """Forward FLOPs of one image (1 multiply-add = 2), counted on a network without weights."""
    return _file_of(name).flops_of(name, grid, config)


def teacher_bytes(name: str, grid: int = GRID, config: TeacherConfig = _DEFAULTS) -> int:
    """Bytes of its weights on a device, counted on a network without weights."""
    return _file_of(name).bytes_of(name, grid, config)


def teacher_digest(name: str) -> str:
    """SHA-256 of the weights that ``name`` means now; empty where a name's weights do not change."""
    file = _file_of(name)
    return file.digest_of(name) if hasattr(file, "digest_of") else ""


def load_teacher(name: str, device: torch.device, grid: int = GRID, config: TeacherConfig = _DEFAULTS) -> Teacher:
    """The encoder itself, frozen on ``device``, its tokens on ``grid``. Raises `UserError` for weights that cannot be had."""
    file = _file_of(name)
    teacher, spec = file.load_teacher(name, device, grid, config), file.spec_of(name, grid, config)
    assert teacher.spec == spec, f"{name}: the registry says {spec}, the encoder {teacher.spec}"
    return teacher
