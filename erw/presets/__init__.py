"""Runs by name. A preset is a function; its docstring says what to expect of it. Options override single settings."""

from collections.abc import Callable

from erw.config import TrainConfig
from erw.errors import UserError
from erw.presets.digits import DIGITS, digits_run
from erw.presets.imagenet import IMAGENET
from erw.presets.images import IMAGES
from erw.settings import nearest

PRESETS: dict[str, Callable[[], TrainConfig]] = {**DIGITS, **IMAGES, **IMAGENET}


def preset(name: str) -> TrainConfig:
    """The settings called ``name``. Raises `UserError` for an unknown name."""
    if name not in PRESETS:
        raise UserError(f"preset '{name}' is not known; {nearest(name, PRESETS)}")
    return PRESETS[name]()


__all__ = ["PRESETS", "digits_run", "preset"]
