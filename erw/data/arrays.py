"""A folder of memory-mapped arrays: the simplest dataset of latents that needs no library to write.

    manifest.json   {"num_classes": 1000, "teachers": [{"name", "width", "grid", "flops_per_image", "file"}], "latents": {...}}
    latents.npy     (N, C, S, S) latents, or (N, 2C, S, S) VAE moments (mean, then standard deviation); fp16 or fp32; or
                    pixels, uint8
    labels.npy      (N,) integers in 0..num_classes-1
    FILE            (N, T, D) patch tokens of each teacher in the manifest; features.npy where it names no file
    images.npy      (N, 3, H, W) uint8; optional, for a teacher that runs online

What `latents.npy` holds is the latent space's business (`erw.latents`); under "latents" the manifest may say it
(`erw.types.StoredLatents`), and then the settings must agree.
"""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from erw.errors import UserError
from erw.files import plain_name
from erw.settings import from_dict
from erw.types import CachedTeacher, StoredLatents, TeacherSpec


class ArrayDataset:
    """The dataset in ``path``; rows are read on demand, nothing is loaded whole."""

    def __init__(self, path: str):
        self.path = Path(path)
        if not path or not self.path.is_dir():
            raise UserError(f"--data.path '{path}' is not a folder: name one that holds manifest.json and latents.npy")
        manifest = self._manifest()
        self.num_classes = int(manifest["num_classes"])
        self.latents = self._open("latents.npy", 4)
        self.labels = self._open("labels.npy", 1, rows=len(self.latents))
        self.channels, self.size = self.latents.shape[1], self.latents.shape[2]
        if self.latents.shape[2] != self.latents.shape[3]:
            raise UserError(f"{self.path}/latents.npy is not square: {self.latents.shape}")
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= self.num_classes:
            raise UserError(
                f"{self.path}/labels.npy holds {low}..{high}, outside 0..{self.num_classes - 1}: mend the labels or"
                " num_classes in manifest.json"
            )
        self.stored = self._stored(manifest)
        separate = (self.path / "images.npy").exists()
        self.has_images = separate or self.latents.dtype == np.uint8
        self._images = self._open("images.npy", 4, rows=len(self.latents)) if separate else self.latents
        self.cached: dict[str, CachedTeacher] = {}
        self._features: dict[str, np.ndarray] = {}
        for entry in manifest.get("teachers") or [e for e in [manifest.get("teacher")] if e]:
            self._open_features(entry)

    def _manifest(self) -> dict:
        file = self.path / "manifest.json"
        try:
            manifest = json.loads(file.read_text(encoding="utf-8"))
            manifest["num_classes"] = int(manifest["num_classes"])
            return manifest
        except FileNotFoundError:
            raise UserError(f"{file} is missing: {self.path} is not an arrays dataset") from None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file} is not a manifest with num_classes: {error!r}") from None

    def _stored(self, manifest: dict) -> StoredLatents | None:
        try:
            return from_dict(StoredLatents, manifest["latents"]) if "latents" in manifest else None
        except UserError as error:
            raise UserError(f"{self.path}/manifest.json: latents: {error}") from None

    def _open(self, name: str, dims: int, rows: int | None = None) -> np.ndarray:
        file = self.path / name
        try:
            array = np.load(file, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise UserError(f"{file} cannot be read: {error}") from None
        if array.ndim != dims or len(array) == 0:
            raise UserError(f"{file} must have {dims} dimensions and at least one row, not shape {array.shape}")
        if rows is not None and len(array) != rows:
            raise UserError(f"{file} has {len(array)} rows, latents.npy has {rows}")
        return array

    def _open_features(self, entry: dict) -> None:
        try:
            spec = TeacherSpec(name=entry["name"], width=int(entry["width"]), grid=int(entry["grid"]))
            file, flops = entry.get("file", "features.npy"), int(entry["flops_per_image"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{self.path}/manifest.json: teacher lacks or garbles {error}") from None
        if not plain_name(file):
            raise UserError(
                f"{self.path}/manifest.json names {file!r} for teacher {spec.name}, which is no file of this folder"
            )
        features = self._open(file, 3, rows=len(self.latents))
        if features.shape[1:] != (spec.grid**2, spec.width):
            raise UserError(
                f"{self.path}/{file} holds {features.shape[1:]} an image, the manifest's teacher {spec.name} gives"
                f" ({spec.grid**2}, {spec.width})"
            )
        self.cached[spec.name], self._features[spec.name] = CachedTeacher(spec, flops), features

    def __len__(self) -> int:
        return len(self.labels)

    def fetch(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Rows as tensors: latents fp32 (uint8 where they are pixels), labels int64."""
        latents = _rows(self.latents, rows)
        return {
            "latents": latents if latents.dtype == torch.uint8 else latents.float(),
            "labels": _rows(self.labels, rows).long(),
        }

    def features(self, name: str, rows: np.ndarray) -> Tensor:
        """(W, N, D) tokens of one teacher in their stored dtype."""
        return _rows(self._features[name], rows)

    def images(self, rows: np.ndarray) -> Tensor:
        """(W, 3, H, W) uint8."""
        return _rows(self._images, rows)


def _rows(array: np.ndarray, rows: np.ndarray) -> Tensor:
    """Rows of a mapped array. Sorted, random page faults become a forward sweep of the file."""
    order = np.argsort(rows, kind="stable")
    back = np.argsort(order, kind="stable")
    return torch.from_numpy(np.ascontiguousarray(array[rows[order]][back]))
