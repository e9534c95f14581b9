"""The stream over a store: the same samples whatever the ranks and loader processes, resumed anywhere, errors in one line."""

import itertools

import numpy as np
import pytest
import torch

from erw.data.store import StoreDataset
from erw.data.stream import Wanted, rows_at, stream
from erw.errors import UserError
from stores import flip, write_store

SEED, BATCH, WINDOW = 7, 16, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """200 rows, 24 a shard: windows, shards, epochs and batches end at different places."""
    folder = tmp_path_factory.mktemp("store") / "data"
    write_store(folder, rows=200, shard=24)
    return folder


def micro_batches(folder, ranks: int, accumulation: int, steps: int, start: int = 0, workers: int = 0, group: int = 1):
    """The micro-batches of all ranks, step by step."""
    micro, wanted = BATCH // (ranks * accumulation), Wanted(("t",), True, group)
    streams = [stream(StoreDataset(str(folder), WINDOW), SEED, start, BATCH, micro, rank, ranks, workers, wanted=wanted)
               for rank in range(ranks)]  # fmt: skip
    return [[b for s in streams for b in itertools.islice(s, accumulation)] for _ in range(steps)]


def rows_of(steps) -> list[list[tuple[int, int]]]:
    """(position, row) pairs of each global batch. A row's first latent is its number."""
    return [
        sorted(p for b in step for p in zip(b.index.tolist(), b.latents[:, 0, 0, 0].int().tolist(), strict=True))
        for step in steps
    ]


@pytest.fixture(scope="module")
def alone(folder):
    """What one rank reads in 30 steps, more than two epochs."""
    return rows_of(micro_batches(folder, 1, 1, 30))


def test_each_epoch_holds_each_row_once(alone):
    rows = [row for step in alone for _, row in step]
    assert sorted(rows[:200]) == sorted(rows[200:400]) == list(range(200)) and rows[:200] != rows[200:400]


@pytest.mark.parametrize(("ranks", "accumulation", "workers"), [(2, 1, 0), (1, 4, 0), (4, 2, 0), (1, 2, 2), (2, 1, 2)])
def test_a_global_batch_does_not_depend_on_ranks_and_workers(folder, alone, ranks, accumulation, workers):
    assert (
        rows_of(micro_batches(folder, ranks, accumulation, 15 if workers else 30, workers=workers))
        == alone[: 15 if workers else 30]
    )


@pytest.mark.parametrize("step", [1, 5, 12, 13, 25])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_resumed_run_goes_on_at_the_image_on_any_ranks(folder, alone, step, ranks):
    assert rows_of(micro_batches(folder, ranks, 1, 4, start=step * BATCH)) == alone[step : step + 4]


def test_features_images_and_labels_are_of_the_same_rows(folder):
    blocks = StoreDataset(str(folder), WINDOW).blocks
    for batch in itertools.chain(*micro_batches(folder, 2, 2, 14, group=6)):
        low, high = int(batch.index[0]) // 6 * 6, -(-(int(batch.index[-1]) + 1) // 6) * 6
        rows = torch.from_numpy(rows_at(np.arange(low, high), SEED, 200, blocks))
        own = rows[batch.first : batch.first + len(batch.labels)]
        assert torch.equal(batch.latents[:, 0, 0, 0].long(), own) and torch.equal(batch.labels, own % 10)
        assert torch.equal(batch.features["t"][:, 0, 0].float(), rows.bfloat16().float())
        assert torch.equal(batch.images[:, 0, 0, 0].long(), rows % 256)


def test_only_what_a_run_needs_is_opened(folder):
    dataset = StoreDataset(str(folder), WINDOW)
    next(stream(dataset, SEED, 0, BATCH, BATCH, 0, 1))
    assert {group for _, group in dataset._files} == {"latents"}


@pytest.mark.parametrize("workers", [0, 2])
def test_damage_is_one_line_with_loader_processes_too(tmp_path, workers):
    write_store(tmp_path / "data", rows=96, shard=24)
    file = tmp_path / "data" / "latents-00001.arrow"
    flip(file, file.stat().st_size // 2)
    batches = stream(StoreDataset(str(tmp_path / "data")), SEED, 0, BATCH, BATCH, 0, 1, workers)
    with pytest.raises(UserError) as caught:
        list(itertools.islice(batches, 6))
    assert str(caught.value).startswith(f"{file} is damaged in column latents, row ") and "\n" not in str(caught.value)


def test_a_dataset_travels_to_processes_that_start_afresh(folder):
    import pickle

    dataset = StoreDataset(str(folder))
    dataset.fetch(np.arange(30))
    dataset.prefetch([0, 1], ("t",), True)
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again.fetch(np.arange(30))["latents"], dataset.fetch(np.arange(30))["latents"])


@pytest.mark.parametrize("until", [0, 3 * BATCH, 12 * BATCH, 15 * BATCH])
def test_only_windows_with_something_wanted_are_brought_whole(folder, monkeypatch, until):
    """Each epoch has 200 rows in windows of `WINDOW` shards; the columns of a window that begins too late stay away."""
    calls = []
    monkeypatch.setattr(StoreDataset, "prefetch", lambda self, *call: calls.append(call))
    monkeypatch.setattr(StoreDataset, "features", lambda self, name, rows: calls.append(len(rows)) or torch.zeros(len(rows)))
    dataset = StoreDataset(str(folder), WINDOW)
    batches = stream(dataset, SEED, 0, BATCH, BATCH, 0, 1, wanted=Wanted(("t",), True, until=until))
    for batch in itertools.islice(batches, 30):
        assert bool(batch.features) == (batch.images is not None) == (batch.index[0] < until)
    assert sum(call for call in calls if isinstance(call, int)) == until
    blocks = dataset.blocks
    begin = {(e, tuple(blocks.shards(SEED, e, w).tolist())): 200 * e + int(blocks.window_starts(SEED, e)[w])
             for e in range(2) for w in range(blocks.windows)}  # fmt: skip
    needed = [shards for (_, shards), first in begin.items() if first < until]
    brought = {shard for call in calls if not isinstance(call, int) and call[1] for shard in call[0]}
    assert brought == {shard for shards in needed for shard in shards}
    assert all(call[1:] in ((("t",), True), ((), False)) for call in calls if not isinstance(call, int))
    assert {shard for call in calls if not isinstance(call, int) for shard in call[0]} == set(range(len(blocks.shard_rows)))
