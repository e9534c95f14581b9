"""The share of samples nearer to a training image than held-out images are, on digits and on points in a plane."""

import pytest
import torch

from erw.data import digits
from erw.errors import UserError
from erw.evaluate.memorisation import copy_threshold, memorised_share, nearest_distances


@pytest.fixture(scope="module")
def training() -> torch.Tensor:
    return digits.load("train")[0]


@pytest.fixture(scope="module")
def held_out() -> torch.Tensor:
    return digits.load("held_out")[0]


@pytest.fixture(scope="module")
def threshold(training, held_out) -> float:
    return copy_threshold(held_out, training)


def _noise(count: int) -> torch.Tensor:
    return torch.rand((count, 1, 8, 8), generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_distances_are_those_to_the_nearest():
    found = nearest_distances(torch.tensor([[0.0, 0.0], [3.0, 5.0]]), torch.tensor([[3.0, 4.0], [0.0, -2.0]]))
    assert found.dtype == torch.float64
    assert found.tolist() == [2.0, 1.0]


def test_the_threshold_is_the_fifth_percentile():
    """Held-out points at distances 1 to 101: a twentieth of the way from the first to the last is 6."""
    points = torch.arange(1.0, 102.0)[:, None]
    assert copy_threshold(points, torch.zeros(1, 1)) == pytest.approx(6.0)


def test_copies_give_one(training, threshold):
    assert memorised_share(training, training, threshold) == 1.0
    assert nearest_distances(training[:50], training).max() == 0


def test_held_out_images_give_a_twentieth(training, held_out, threshold):
    assert memorised_share(held_out, training, threshold) == pytest.approx(0.05, abs=0.005)


def test_noise_gives_nothing(training, threshold):
    assert memorised_share(_noise(200), training, threshold) == 0.0


def test_a_mixture_gives_its_share(training, threshold):
    mixture = torch.cat([training[:30] + 1e-3, _noise(70)])
    assert memorised_share(mixture, training, threshold) == pytest.approx(0.3)


@pytest.mark.parametrize("chunk", [1, 7, 360, 1000])
def test_chunks_change_nothing(training, held_out, threshold, chunk):
    whole = nearest_distances(held_out, training, chunk=10_000)
    assert torch.equal(nearest_distances(held_out, training, chunk=chunk), whole)
    assert copy_threshold(held_out, training, chunk=chunk) == threshold
    assert memorised_share(held_out, training, threshold, chunk=chunk) == memorised_share(held_out, training, threshold)


def test_what_cannot_be_compared_is_refused(training, held_out):
    with pytest.raises(ValueError, match="cannot be compared"):
        nearest_distances(torch.zeros(3, 1, 4, 4), training)
    with pytest.raises(ValueError, match="cannot be compared"):
        nearest_distances(held_out[:0], training)
    broken = held_out[:10].clone()
    broken[4, 0, 0, 0] = torch.nan
    with pytest.raises(UserError, match="1 of 10 images hold NaN or infinity"):
        memorised_share(broken, training, 1.0)


def test_held_out_images_that_are_training_images_are_refused(training):
    with pytest.raises(UserError, match="hold out others"):
        copy_threshold(training[:100], training)
