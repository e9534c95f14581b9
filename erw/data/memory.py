"""A dataset that fits in memory."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from erw.data import digits
from erw.types import CachedTeacher, TeacherSpec


class MemoryDataset:
    """Images (N, C, S, S) fp32 in [-1, 1], their own latents; labels (N,) int64; features once someone adds them."""

    has_images = True
    stored = None

    def __init__(self, images: Tensor, labels: Tensor, num_classes: int):
        self.pixels, self.labels, self.num_classes = images, labels, num_classes
        self.channels, self.size = images.shape[1], images.shape[2]
        self.cached: dict[str, CachedTeacher] = {}
        self._features: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def fetch(self, rows: np.ndarray) -> dict[str, Tensor]:
        """See `erw.data.stream.Dataset`."""
        chosen = torch.from_numpy(rows)
        return {"latents": self.pixels[chosen], "labels": self.labels[chosen]}

    def features(self, name: str, rows: np.ndarray) -> Tensor:
        """See `erw.data.stream.Dataset`."""
        return self._features[name][torch.from_numpy(rows)]

    def images(self, rows: np.ndarray) -> Tensor:
        """The latents themselves."""
        return self.pixels[torch.from_numpy(rows)]

    def add_features(self, spec: TeacherSpec, flops: int, tokens: Callable[[Tensor], Tensor]) -> None:
        """Compute and keep the teacher's ``tokens`` of every image."""
        self._features[spec.name] = torch.cat([tokens(part) for part in self.pixels.split(256)])
        self.cached[spec.name] = CachedTeacher(spec, flops)


def digits_dataset() -> MemoryDataset:
    """The training split of the embedded digits."""
    return MemoryDataset(*digits.load("train"), num_classes=digits.NUM_CLASSES)
