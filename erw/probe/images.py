"""The images that are probed: a split to fit linear probes on, one held out, and the teacher's features of both."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from erw.build import fit_to_data
from erw.config import TrainConfig
from erw.data import ArrayDataset, Dataset, digits, open_dataset
from erw.data.memory import MemoryDataset
from erw.data.order import permutation
from erw.errors import UserError
from erw.latents import latent_space
from erw.teachers import TeacherConfig, teacher_specs
from erw.teachers.features import FeatureSource
from erw.types import Batch

# Rows, noise and posterior samples: the same for every run that is probed, and none that training has drawn.
PROBE_SEED = 1 << 41
_BATCH = 250
_HELD_OUT_SHARE = 5  # of an arrays dataset without a held-out one: a fifth


@dataclass(frozen=True)
class Split:
    """Clean latents (N, C, S, S), labels (N,), index (N,) for draws and the teacher's tokens, (N, D) pooled or (N, T, D)."""

    latents: Tensor
    labels: Tensor
    index: Tensor
    teacher: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Images:
    """Both splits and what a reader must know of them. ``train`` and ``held_out`` share no image."""

    train: Split
    held_out: Split
    note: str


@dataclass(frozen=True, kw_only=True)
class ImageSource:
    """Which images: at most ``count`` of each split; for arrays the folder of held-out ones, if there is one.

    ``tokens``: keep the teacher's tokens instead of their mean.
    """

    teacher: str
    count: int
    held_out: Path | None = None
    tokens: bool = False


def read_images(config: TrainConfig, source: ImageSource, device: torch.device) -> Images:
    """The images of ``config``'s data set and the features of ``source.teacher`` of them.

    Raises `UserError` where data, model and teacher do not fit each other.
    """
    if source.count < 1:
        raise UserError(f"--count must be at least 1, not {source.count}")
    teacher_specs(TeacherConfig(name=source.teacher))
    dataset = open_dataset(config.data)
    config, _ = fit_to_data(config, dataset)
    if config.data.name == "digits":
        if source.held_out is not None:
            raise UserError("--held-out is for arrays: digits have held-out images of their own")
        other, note = MemoryDataset(*digits.load("held_out"), num_classes=digits.NUM_CLASSES), "held out from all training"
        rows = [permutation(PROBE_SEED, 0, len(d))[: source.count] for d in (dataset, other)]
    elif source.held_out is not None:
        other, note = ArrayDataset(str(source.held_out)), f"held out: {source.held_out}"
        fit_to_data(config, other)
        rows = [permutation(PROBE_SEED, 0, len(d))[: source.count] for d in (dataset, other)]
    else:
        other, note = dataset, "held out from the probes alone: the generator has trained on them (--held-out names others)"
        order = permutation(PROBE_SEED, 0, len(dataset))
        cut = max(1, len(dataset) // _HELD_OUT_SHARE)
        rows = [order[cut : cut + source.count], order[: min(cut, source.count)]]
    splits = [_read(config, d, np.sort(r), source, device) for d, r in zip((dataset, other), rows, strict=True)]
    if not len(splits[0]):
        raise UserError("the dataset has too few images to fit a linear probe on")
    return Images(splits[0], splits[1], note)


def _read(config: TrainConfig, dataset: Dataset, rows: np.ndarray, source: ImageSource, device: torch.device) -> Split:
    features = _feature_source(dataset, source.teacher, device, config.model.grid)
    space = latent_space(config.latents)
    parts = []
    for start in range(0, len(rows), _BATCH):
        part = rows[start : start + _BATCH]
        held = {name: dataset.features(name, part) for name in features.wanted.teachers}
        pixels = dataset.images(part) if features.wanted.images else None
        batch = Batch(**dataset.fetch(part), index=torch.from_numpy(part).long(), features=held, images=pixels).to(device)
        tokens = features(batch).tokens[0].float()
        latents = space.draw(batch.latents, PROBE_SEED, batch.index)
        parts.append((latents.cpu(), batch.labels.cpu(), batch.index.cpu(),
                      (tokens if source.tokens else tokens.mean(dim=1)).cpu()))  # fmt: skip
    return Split(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _feature_source(dataset: Dataset, teacher: str, device: torch.device, grid: int) -> FeatureSource:
    """From the dataset's cache where that has the teacher, else from the encoder, if there are images for it."""
    cached = teacher in dataset.cached or isinstance(dataset, MemoryDataset)
    if not cached and not dataset.has_images:
        have = ", ".join(dataset.cached) or "no teacher"
        raise UserError(
            f"--teacher {teacher}: the dataset holds features of {have} and no images to compute them from: name another"
            " teacher, or prepare the dataset with this one"
        )
    settings = TeacherConfig(name=teacher, source="cached" if cached else "online", precision="fp32")
    source = FeatureSource(settings, dataset, device, grid=grid)
    source.prepare()
    return source


def with_data(config: TrainConfig, path: Path | None) -> TrainConfig:
    """``config`` with its dataset at ``path``, for runs that were trained elsewhere."""
    if path is None:
        return config
    if config.data.name == "digits":
        raise UserError("--data is for runs on prepared data: digits are embedded")
    return replace(config, data=replace(config.data, path=str(path)))
