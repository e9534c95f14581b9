"""Data order: a pure function of (seed, position), whatever the ranks, accumulation and loader processes."""

import itertools

import numpy as np
import pytest
import torch

from erw.data.memory import MemoryDataset, digits_dataset
from erw.data.stream import rows_at, stream


def test_each_epoch_holds_each_image_once_in_an_order_of_its_own():
    rows = rows_at(np.arange(300), seed=1, length=100)
    epochs = rows.reshape(3, 100)
    assert all(sorted(epoch) == list(range(100)) for epoch in epochs)
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(rows, rows_at(np.arange(300), seed=2, length=100))


def small() -> MemoryDataset:
    return MemoryDataset(torch.arange(50.0).view(50, 1, 1, 1), torch.arange(50), num_classes=50)


def global_batches(ranks: int, accumulation: int, steps: int, start: int = 0, workers: int = 0):
    """For each step the (position, label) pairs that all ranks see, in order of position."""
    batch = 16
    micro = batch // (ranks * accumulation)
    streams = [stream(small(), 7, start, batch, micro, r, ranks, workers) for r in range(ranks)]
    result = []
    for _ in range(steps):
        seen = [b for s in streams for b in itertools.islice(s, accumulation)]
        pairs = [(int(i), int(y)) for b in seen for i, y in zip(b.index, b.labels, strict=True)]
        result.append(sorted(pairs))
    return result


@pytest.mark.parametrize(("ranks", "accumulation"), [(1, 2), (1, 4), (2, 1), (2, 4), (4, 2)])
def test_global_batches_do_not_depend_on_the_split(ranks, accumulation):
    assert global_batches(ranks, accumulation, 8) == global_batches(1, 1, 8)


def test_a_later_start_continues_the_stream_across_epochs():
    assert global_batches(1, 1, 8)[5:] == global_batches(2, 1, 3, start=5 * 16)


def test_loader_processes_change_nothing():
    assert global_batches(1, 2, 4, workers=2) == global_batches(1, 2, 4)


def test_rows_stay_with_their_labels_and_features():
    dataset = digits_dataset()
    from erw.types import TeacherSpec

    spec = TeacherSpec(name="mean", width=1, grid=1)
    dataset.add_features(spec, 0, lambda images: images.mean(dim=(2, 3)).unsqueeze(1))
    batch = dataset.fetch(np.array([5, 3, 900]))
    assert torch.equal(batch["labels"], dataset.labels[[5, 3, 900]])
    assert torch.allclose(dataset.features(spec.name, np.array([5, 3, 900]))[:, 0, 0], batch["latents"].mean(dim=(1, 2, 3)))
