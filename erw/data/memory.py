"""A dataset that fits in memory."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from erw.data import digits
from erw.types import TeacherSpec


class MemoryDataset:
    """Images (N, C, S, S) fp32 that are their own latents, labels (N,) int64, and features once someone adds them."""

    def __init__(self, images: Tensor, labels: Tensor, num_classes: int):
        self.images, self.labels, self.num_classes = images, labels, num_classes
        self.channels, self.size = images.shape[1], images.shape[2]
        self.teacher: TeacherSpec | None = None
        self.teacher_flops = 0
        self.features: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def fetch(self, rows: np.ndarray) -> dict[str, Tensor]:
        """See `erw.data.stream.Dataset`."""
        chosen = torch.from_numpy(rows)
        batch = {"latents": self.images[chosen], "labels": self.labels[chosen]}
        if self.features is not None:
            batch["features"] = self.features[chosen]
        return batch

    def add_features(self, spec: TeacherSpec, flops: int, tokens: Callable[[Tensor], Tensor]) -> None:
        """Compute and keep the teacher's ``tokens`` of every image."""
        self.features = torch.cat([tokens(part) for part in self.images.split(256)])
        self.teacher, self.teacher_flops = spec, flops


def digits_dataset() -> MemoryDataset:
    """The training split of the embedded digits."""
    return MemoryDataset(*digits.load("train"), num_classes=digits.NUM_CLASSES)
