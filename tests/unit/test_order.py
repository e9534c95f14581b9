"""Block shuffle: shards in a random order, shuffled in windows; a pure function of (seed, epoch)."""

import itertools

import numpy as np
import pytest

from erw.data.order import Blocks

UNEQUAL = (7, 3, 5, 9, 1, 8, 6, 4, 2, 10, 5)


@pytest.mark.parametrize("window", [1, 2, 4, 11, 50])
def test_each_epoch_holds_each_row_once_in_an_order_of_its_own(window):
    blocks = Blocks(UNEQUAL, window)
    epochs = [blocks.rows(3, epoch, np.arange(60)) for epoch in range(3)]
    assert all(sorted(rows) == list(range(60)) for rows in epochs)
    assert all(not np.array_equal(a, b) for a, b in itertools.pairwise(epochs))
    assert not np.array_equal(epochs[0], blocks.rows(4, 0, np.arange(60)))


def test_any_place_can_be_asked_for_alone():
    blocks, whole = Blocks(UNEQUAL, 3), Blocks(UNEQUAL, 3).rows(3, 1, np.arange(60))
    assert [int(blocks.rows(3, 1, np.array([place]))[0]) for place in range(60)] == whole.tolist()
    chosen = np.array([59, 0, 31, 30])
    assert blocks.rows(3, 1, chosen).tolist() == whole[chosen].tolist()


def test_a_window_holds_the_rows_of_its_shards_and_mixes_them():
    blocks = Blocks(UNEQUAL, 4)
    starts, seen = blocks.window_starts(3, 0), []
    assert blocks.windows == 3 and starts[-1] == 60
    for window, (low, high) in enumerate(itertools.pairwise(starts)):
        shards = blocks.shards(3, 0, window)
        rows = blocks.rows(3, 0, np.arange(low, high))
        assert set(np.searchsorted(blocks.starts, rows, side="right") - 1) == set(shards)
        assert blocks.window_at(3, 0, low) == blocks.window_at(3, 0, high - 1) == window
        assert rows.tolist() != sorted(rows)
        seen += shards.tolist()
    assert sorted(seen) == list(range(len(UNEQUAL)))


def test_batches_are_mixed_as_by_a_whole_permutation():
    """Rows of 40 shards of 64, each a random sample of 10 classes: label counts in batches of 64 vary as they should."""
    labels = np.random.default_rng(0).permutation(np.arange(2560) % 10)

    def spread(rows: np.ndarray) -> float:
        counts = np.stack([np.bincount(labels[part], minlength=10) for part in rows.reshape(-1, 64)])
        return float(counts.var())

    block = np.mean([spread(Blocks((64,) * 40, 8).rows(1, epoch, np.arange(2560))) for epoch in range(20)])
    whole = np.mean([spread(np.random.default_rng(epoch).permutation(2560)) for epoch in range(20)])
    assert abs(block / whole - 1) < 0.1  # 64 draws from 10 equal classes: about 5.76 both
    sorted_shards = np.mean([spread(np.argsort(labels, kind="stable")[np.arange(2560)])])
    assert sorted_shards > 5 * whole
