"""A folder of memory-mapped arrays: the simplest dataset of latents that needs no library to write.

    manifest.json   {"num_classes": 1000, "teacher": {"name", "width", "grid", "flops_per_image"} or null}
    latents.npy     (N, C, S, S) latents, or (N, 2C, S, S) VAE moments (mean, then standard deviation); fp16 or fp32
    labels.npy      (N,) integers in 0..num_classes-1
    features.npy    (N, T, D) teacher patch tokens; only with a teacher in the manifest
    images.npy      (N, 3, H, W) uint8; optional, for a teacher that runs online

Which of the two `latents.npy` holds is the latent space's business (`erw.latents`).
"""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from erw.errors import UserError
from erw.types import TeacherSpec


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
        self.teacher, self.teacher_flops, self.features = None, 0, None
        present = (self.path / "images.npy").exists()
        self.images = self._open("images.npy", 4, rows=len(self.latents)) if present else None
        if manifest.get("teacher"):
            self._open_features(manifest["teacher"])

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
            self.teacher = TeacherSpec(name=entry["name"], width=int(entry["width"]), grid=int(entry["grid"]))
            self.teacher_flops = int(entry["flops_per_image"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{self.path}/manifest.json: teacher lacks or garbles {error}") from None
        self.features = self._open("features.npy", 3, rows=len(self.latents))
        if self.features.shape[1:] != (self.teacher.grid**2, self.teacher.width):
            raise UserError(
                f"{self.path}/features.npy holds {self.features.shape[1:]} an image, the manifest's teacher"
                f" {self.teacher.name} gives ({self.teacher.grid**2}, {self.teacher.width})"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def fetch(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Rows as tensors: latents fp32, labels int64, features in their stored dtype."""
        # Sorted rows turn random page faults into a forward sweep of the file.
        order = np.argsort(rows, kind="stable")
        back = np.argsort(order, kind="stable")

        def read(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array[rows[order]][back]))

        batch = {"latents": read(self.latents).float(), "labels": read(self.labels).long()}
        if self.features is not None:
            batch["features"] = read(self.features)
        if self.images is not None:
            batch["images"] = read(self.images)
        return batch
