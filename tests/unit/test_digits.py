"""The digits as data: their split and their augmentation."""

import pytest
import torch

from erw.data import digits
from erw.data.digits import Augmentation, augment
from erw.errors import UserError


def test_split_is_stratified_and_covers_every_image_once():
    (images, labels), (held_out, answers) = digits.load("train"), digits.load("held_out")
    assert images.shape == (1437, 1, 8, 8) and held_out.shape == (360, 1, 8, 8)
    assert answers.bincount().tolist() == [36] * 10
    assert labels.bincount().min() >= 138
    # The data set has no two equal images, so distinct rows over both parts mean that the parts are disjoint.
    assert len(torch.cat([images, held_out]).flatten(1).unique(dim=0)) == 1797


def test_images_span_minus_one_to_one():
    images, labels = digits.load("train")
    assert images.dtype == torch.float32 and labels.dtype == torch.int64
    assert images.min() == -1 and images.max() == 1
    # Ink is in the middle, paper at the border.
    assert images[..., 3:5].mean() > 0 > -0.9 > images[..., 0].mean()


def test_split_is_a_function_of_the_labels_alone():
    """Pinned: changing the split would make old teachers see new held-out digits."""
    labels = torch.arange(1000) % 10
    torch.manual_seed(0)
    first = digits.split_of(labels)
    torch.manual_seed(1)
    assert torch.equal(first, digits.split_of(labels))
    assert first.nonzero().flatten()[:8].tolist() == [5, 6, 7, 8, 11, 15, 16, 17]


def test_unknown_split_is_refused():
    with pytest.raises(UserError, match="no split 'test': choose one of train, held_out"):
        digits.load("test")


_NONE = {"rotation": 0, "scale": 0, "shear": 0, "shift": 0, "contrast": 0, "noise": 0, "cutout": 0}


def _augmented(images, seed: int = 0, **changes):
    return augment(images, Augmentation(**(_NONE | changes)), torch.Generator().manual_seed(seed))


def test_augmentation_of_nothing_changes_nothing():
    images = digits.load("held_out")[0][:16]
    torch.testing.assert_close(_augmented(images), images, rtol=0, atol=1e-5)


def test_augmentation_shifts_by_pixels_and_fills_with_paper():
    """A bright dot in the middle moves by at most the shift, the same ink spread over neighbouring pixels."""
    images = torch.full((64, 1, 8, 8), -1.0)
    images[:, :, 4, 4] = 1.0
    moved = _augmented(images, shift=2.0) + 1
    torch.testing.assert_close(moved.sum(dim=(1, 2, 3)), torch.full((64,), 2.0))
    rows = (moved.sum(dim=(1, 3)) * torch.arange(8)).sum(dim=1) / 2
    assert 1.5 < (rows - 4).abs().max() <= 2.0 + 1e-5


def test_augmentation_cuts_squares_out():
    cut = _augmented(torch.ones(64, 1, 8, 8), cutout=1.0)
    blanks = (cut == -1).sum(dim=(1, 2, 3))
    assert blanks.min() >= 4 and blanks.max() == 9


def test_augmentation_draws_from_its_generator_only():
    images = digits.load("held_out")[0][:16]
    state = torch.get_rng_state()
    changes = {"rotation": 20, "scale": 0.2, "shear": 0.2, "shift": 1, "contrast": 0.3, "noise": 0.1, "cutout": 0.5}
    assert torch.equal(_augmented(images, 3, **changes), _augmented(images, 3, **changes))
    assert not torch.equal(_augmented(images, 3, **changes), _augmented(images, 4, **changes))
    assert torch.equal(state, torch.get_rng_state())
