"""Random views of colour images: what each distortion leaves alone, and that every image has its own."""

import pytest
import torch

from erw.data.views import Views, _colours, view
from photographs import photographs

STILL = Views(least=1, ratio=1, colour=0, grey=0)


def images(count: int = 8, side: int = 32) -> torch.Tensor:
    """Crops of a photograph, (count, 3, side, side) in [0, 1]."""
    picture = torch.from_numpy(photographs()[0].copy()).permute(2, 0, 1) / 255
    return torch.stack([picture[:, 40 * i : 40 * i + side, 60 * i : 60 * i + side] for i in range(count)])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_without_distortions_an_image_is_itself_or_its_mirror():
    before = images()
    after = view(before, STILL, seeded())
    same = (after - before).abs().amax(dim=(1, 2, 3)) < 1e-5
    mirrored = (after - before.flip(3)).abs().amax(dim=(1, 2, 3)) < 1e-5
    assert (same ^ mirrored).all() and same.any() and mirrored.any()


def test_a_seed_is_a_view_and_each_image_has_its_own():
    before = images(1).expand(8, -1, -1, -1)
    once, again, other = (view(before, Views(), seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(once, again) and not torch.equal(once, other)
    assert once.shape == before.shape and once.min() >= 0 and once.max() <= 1
    assert all(not torch.equal(once[0], row) for row in once[1:])


def test_grey_views_have_one_value_a_pixel_and_others_do_not():
    grey = view(images(), Views(colour=0, grey=1), seeded())
    assert (grey[:, :1] - grey).abs().max() < 1e-6
    coloured = view(images(), Views(colour=0, grey=0), seeded())
    assert (coloured[:, :1] - coloured).abs().max() > 0.05


def test_a_crop_is_a_part_of_the_image():
    """On a ramp from left to right, a crop's values span less than the image's, and rise or fall all the way."""
    ramp = torch.linspace(0, 1, 64).expand(16, 3, 64, 64).contiguous()
    rows = view(ramp, Views(least=0.2, ratio=1, colour=0, grey=0), seeded())[:, 0, 32]
    steps = rows.diff(dim=1)
    assert ((steps >= -1e-6).all(dim=1) | (steps <= 1e-6).all(dim=1)).all()
    spans = rows.amax(dim=1) - rows.amin(dim=1)
    assert spans.min() > 0.4 and spans.max() <= 1 and spans.std() > 0.05  # sides are at least the root of 0.2


@pytest.mark.parametrize(
    ("how", "keeps"),
    [
        ({"brightness": 0, "contrast": 0, "saturation": 0}, "sum"),
        ({"brightness": 0, "contrast": 0, "hue": 0}, "luma"),
        ({"saturation": 0, "hue": 0, "contrast": 0}, "ratio"),
    ],
)
def test_each_change_of_colour_keeps_what_it_should(how, keeps):
    """Hue keeps a colour's sum, saturation its luma, brightness its ratios; each changes the colour."""
    matrices, lift = _colours(50, Views(colour=1, grey=0, **how), seeded())
    colour = torch.tensor([0.6, 0.3, 0.1])
    changed = matrices @ colour
    luma = torch.tensor([0.299, 0.587, 0.114])
    kept = {"sum": changed.sum(dim=1) - colour.sum(), "luma": changed @ luma - colour @ luma,
            "ratio": changed / changed.sum(dim=1, keepdim=True) - colour / colour.sum()}[keeps]  # fmt: skip
    assert kept.abs().max() < 1e-5 and (changed - colour).abs().max() > 0.02 and lift.abs().max() < 1e-6


def test_contrast_keeps_the_mean_luma():
    matrices, lift = _colours(50, Views(colour=1, grey=0, brightness=0, saturation=0, hue=0), seeded())
    grey = torch.full((3,), 0.4)
    torch.testing.assert_close(matrices @ grey + lift.squeeze(2) * 0.4, grey.expand(50, 3), rtol=0, atol=1e-5)
    assert lift.abs().max() > 0.1
