"""Data order: a pure function of (seed, position), whatever the ranks, accumulation and loader processes."""

import itertools

import numpy as np
import pytest
import torch

from erw.data.memory import MemoryDataset, digits_dataset
from erw.data.stream import Wanted, rows_at, stream
from erw.ops import REFERENCE
from erw.types import TeacherSpec


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


def grouped(group: int, ranks: int, accumulation: int, start: int, images: bool = False):
    """Micro-batches of all ranks over three steps, of a dataset whose teacher tokens are the labels."""
    dataset, batch = small(), 24
    dataset.add_features(TeacherSpec(name="label", width=1, grid=1), 0, lambda images: images.flatten(1).unsqueeze(1))
    wanted = Wanted(("label",), images, group)
    streams = [stream(dataset, 7, start, batch, batch // (ranks * accumulation), r, ranks, wanted=wanted) for r in range(ranks)]
    return [b for _ in range(3) for s in streams for b in itertools.islice(s, accumulation)]


@pytest.mark.parametrize("start", [0, 24, 240])
@pytest.mark.parametrize(("ranks", "accumulation"), [(1, 1), (1, 3), (2, 1), (2, 3), (4, 2), (1, 24)])
@pytest.mark.parametrize("group", [1, 2, 6, 8, 64])
def test_features_are_those_of_the_whole_groups_that_a_micro_batch_touches(group, ranks, accumulation, start):
    batches = grouped(group, ranks, accumulation, start)
    assert len(batches) == 3 * ranks * accumulation
    for batch in batches:
        numbers = {int(position) // group for position in batch.index}
        positions = np.array([p for number in sorted(numbers) for p in range(number * group, (number + 1) * group)])
        features = batch.features["label"][:, 0, 0]
        assert features.tolist() == rows_at(positions, 7, 50).tolist()
        assert torch.equal(features[batch.first : batch.first + len(batch.labels)], batch.labels.float())
        if group == 1:
            assert batch.first == 0 and torch.equal(features, batch.labels.float())


def test_images_for_a_teacher_that_runs_online_come_in_the_same_groups():
    for batch in grouped(6, 2, 3, 24, images=True):
        assert torch.equal(batch.images.flatten(), batch.features["label"].flatten())
    assert all(batch.images is None for batch in grouped(6, 2, 3, 24))


@pytest.mark.parametrize(("ranks", "accumulation", "workers"), [(1, 1, 0), (2, 3, 0), (1, 2, 2)])
@pytest.mark.parametrize("group", [1, 32])
@pytest.mark.parametrize("start", [0, 24, 48, 72])
def test_nothing_but_latents_is_fetched_once_nothing_else_is_wanted(ranks, accumulation, workers, group, start):
    dataset, batch, micro = small(), 24, 24 // (ranks * accumulation)
    dataset.add_features(TeacherSpec(name="label", width=1, grid=1), 0, lambda images: images.flatten(1).unsqueeze(1))

    def read(until):
        wanted = Wanted(("label",), True, group, until)
        streams = [stream(dataset, 7, start, batch, micro, r, ranks, workers, wanted=wanted) for r in range(ranks)]
        return [b for _ in range(4) for s in streams for b in itertools.islice(s, accumulation)]

    for ours, always in zip(read(48), read(None), strict=True):
        assert torch.equal(ours.index, always.index) and torch.equal(ours.latents, always.latents)
        if ours.index[0] < 48:
            assert torch.equal(ours.features["label"], always.features["label"]) and ours.first == always.first
            assert torch.equal(ours.images, always.images)
        else:
            assert ours.features == {} and ours.images is None


def test_the_losses_of_a_global_batch_do_not_depend_on_the_split():
    z, losses = torch.randn(72, 1, 3), {}
    for split in [(1, 1), (2, 3), (4, 2)]:
        seen = {}
        for batch in grouped(8, *split, start=24):
            target = torch.cat([batch.features["label"].sin(), batch.features["label"].cos(), batch.features["label"] / 50], -1)
            found = REFERENCE.nt_xent_alignment(z[batch.index - 24], target, first=batch.first, group=8, tau=0.1)
            seen |= dict(zip(batch.index.tolist(), found, strict=True))
        losses[split] = torch.stack([seen[position] for position in range(24, 96)])
    assert torch.allclose(losses[1, 1], losses[2, 3]) and torch.allclose(losses[1, 1], losses[4, 2])


def test_rows_stay_with_their_labels_and_features():
    dataset = digits_dataset()
    spec = TeacherSpec(name="mean", width=1, grid=1)
    dataset.add_features(spec, 0, lambda images: images.mean(dim=(2, 3)).unsqueeze(1))
    batch = dataset.fetch(np.array([5, 3, 900]))
    assert torch.equal(batch["labels"], dataset.labels[[5, 3, 900]])
    assert torch.allclose(dataset.features(spec.name, np.array([5, 3, 900]))[:, 0, 0], batch["latents"].mean(dim=(1, 2, 3)))
