"""What REPA's preprocessing wrote: a file of VAE moments for each image.

    SOURCE/vae-sd/dataset.json                     {"labels": [["00000/img-mean-std-00000000.npy", 217], ...]}
    SOURCE/vae-sd/00000/img-mean-std-00000000.npy  (8, 32, 32) fp32, mean then standard deviation, unscaled
    SOURCE/images/00000/img00000000.png            the image itself

REPA's loader pairs images and moments by the order of their sorted names, so that one file too many shifts all that follow.
Here they are paired by the number in their names, and whatever has no partner is an error.
"""

import json
import os
import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from erw.errors import UserError
from erw.prepare.imports import Columns
from erw.prepare.listing import SUFFIXES
from erw.types import StoredLatents

FEATURES, IMAGES = "vae-sd", "images"
_MOMENTS, _IMAGE = re.compile(r"(?:.*/)?img-mean-std-(\d+)\.npy"), re.compile(r"(?:.*/)?img(\d+)\.\w+")


class RepaSource:
    """See the module. ``images``: bring them along as (3, H, W) uint8."""

    mirrored = False

    def __init__(self, path: Path, vae: str = "", images: bool = False, scale: float | None = None):
        self.path = path
        labels = _labels(path / FEATURES / "dataset.json")
        self.names = sorted(labels)
        self.labels = np.array([labels[name] for name in self.names], np.int64)
        _check_listed(path / FEATURES, labels)
        self._images = _pairs(path, self.names) if images or (path / IMAGES).is_dir() else []
        self._with_images = images
        self.shape = tuple(_moments(path / FEATURES / self.names[0]).shape)
        self.stored = StoredLatents(kind="vae", vae=vae or "stabilityai/sd-vae-ft-mse", channels=self.shape[0] // 2, stride=8,
                                    scale=0.18215 if scale is None else scale)  # fmt: skip
        self.pixels = self.shape[-1] * self.stored.stride

    def rows(self, numbers: np.ndarray, mirrored: bool = False) -> Columns:
        """See `Encoded`."""
        columns: Columns = {"latents": torch.stack([self._latents(number) for number in numbers.tolist()])}
        if self._with_images:
            columns["images"] = torch.stack([self._image(number) for number in numbers.tolist()])
        return columns

    def _latents(self, number: int) -> Tensor:
        file = self.path / FEATURES / self.names[number]
        moments = _moments(file)
        if moments.shape != self.shape:
            raise UserError(f"{file} holds {tuple(moments.shape)}, {self.names[0]} {self.shape}: encode it again")
        return moments

    def _image(self, number: int) -> Tensor:
        file = self.path / IMAGES / self._images[number]
        try:
            with Image.open(file) as image:
                pixels = np.array(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError) as error:
            raise UserError(f"{file} cannot be read ({_first(error)}): make it again, or import without --images") from None
        if pixels.shape != (self.pixels, self.pixels, 3):
            raise UserError(f"{file} is {pixels.shape[1]}x{pixels.shape[0]}, its moments are of {self.pixels}x{self.pixels}")
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _moments(file: Path) -> Tensor:
    """(2 * channels, side, side) fp32."""
    try:
        moments = torch.from_numpy(np.load(file, allow_pickle=False)).float()
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise UserError(f"{file} cannot be read ({_first(error)}): encode it again") from None
    if moments.ndim != 3 or moments.shape[0] % 2 or moments.shape[1] != moments.shape[2]:
        raise UserError(f"{file} holds {tuple(moments.shape)}, not moments (2 * channels, side, side): encode it again")
    if not moments.isfinite().all() or (moments[moments.shape[0] // 2 :] < 0).any():
        raise UserError(f"{file} holds NaN, infinity or a negative standard deviation: encode it again")
    return moments


def _labels(file: Path) -> dict[str, int]:
    """Label by name of the file of moments."""
    try:
        pairs = json.loads(file.read_text(encoding="utf-8"))["labels"]
        labels = {str(name).replace("\\", "/"): int(label) for name, label in pairs}
    except FileNotFoundError:
        raise UserError(f"{file} is missing: it says the images' labels; copy it from where they were encoded") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} has no labels as REPA's scripts write them ({_first(error)})") from None
    if len(labels) < len(pairs) or not labels:
        raise UserError(f"{file} names {'a file twice' if labels else 'no file'}")
    if min(labels.values()) < 0:
        raise UserError(f"{file} has labels below 0")
    return labels


def _check_listed(folder: Path, labels: dict[str, int]) -> None:
    """Raise `UserError` unless the files of moments in ``folder`` are those with labels."""
    found = {name for name in _files(folder) if name.endswith(".npy")}
    for name in sorted(labels.keys() - found)[:1]:
        raise UserError(f"{folder / name} is missing; dataset.json names it ({len(labels.keys() - found):,} such)")
    for name in sorted(found - labels.keys())[:1]:
        raise UserError(f"{folder / name} has no label in dataset.json ({len(found - labels.keys()):,} such)")


def _pairs(path: Path, names: list[str]) -> list[str]:
    """For each file of moments the image of the same number. Raises `UserError` for one without partner."""
    images: dict[int, str] = {}
    for name in _files(path / IMAGES):
        if Path(name).suffix.lower() not in SUFFIXES:
            continue
        number = _number(_IMAGE, name, path / IMAGES)
        if images.setdefault(number, name) != name:
            raise UserError(f"{path / IMAGES / images[number]} and {path / IMAGES / name} are of the same number: keep one")
    pairs = []
    for name in names:
        image = images.pop(_number(_MOMENTS, name, path / FEATURES), None)
        if image is None:
            raise UserError(f"{path / FEATURES / name} has no image of its number in {path / IMAGES}")
        pairs.append(image)
    for name in sorted(images.values())[:1]:
        raise UserError(f"{path / IMAGES / name} has no moments of its number in {path / FEATURES} ({len(images):,} such)")
    return pairs


def _number(pattern: re.Pattern[str], name: str, folder: Path) -> int:
    found = pattern.fullmatch(name)
    if not found:
        raise UserError(f"{folder / name} has no number in its name, by which images and moments are paired")
    return int(found[1])


def _files(folder: Path) -> list[str]:
    """Names relative to ``folder``, with forward slashes."""
    if not folder.is_dir():
        raise UserError(f"{folder} is missing: name the folder that holds {IMAGES} and {FEATURES}")
    found = [os.path.join(root, name) for root, _, names in os.walk(folder) for name in names]
    return [os.path.relpath(name, folder).replace(os.sep, "/") for name in found]


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
