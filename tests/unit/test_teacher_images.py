"""How images and feature maps are resized for teachers, here and, where there is a checkout, by REPA's own function."""

import ast
import os
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision

from erw.errors import UserError
from erw.teachers import TeacherConfig
from erw.teachers import timm as teachers
from erw.teachers.base import fed_side, resampled, resized, unit_images
from erw.teachers.timm import TimmTeacher, described
from teachers import CLIP, IMAGENET, photographs, small


@pytest.mark.parametrize(
    ("patch", "grid", "least", "side"),
    [(14, 16, 192, 224), (14, 32, 192, 448), (16, 16, 192, 256), (16, 32, 192, 512), (8, 16, 192, 256), (14, 8, 192, 224),
     (16, 4, 192, 192), (16, 8, 128, 128), (16, 4, 128, 128)],
)  # fmt: skip
def test_the_side_that_images_are_fed_at(patch, grid, least, side):
    assert fed_side(patch, grid, least) == side


def test_resampling_keeps_means_and_ramps():
    ramp = torch.linspace(0, 1, 16).view(1, 1, 16).expand(1, 16, 16).reshape(1, 256, 1) + 3
    coarse = resampled(ramp, 8).view(8, 8)
    torch.testing.assert_close(coarse.mean(), ramp.mean())
    torch.testing.assert_close(coarse, coarse[:1].expand(8, 8))  # along columns, as it was
    torch.testing.assert_close(coarse[0, 1:-1].diff(), torch.full((5,), 2 / 15))
    assert torch.equal(resampled(ramp, 16), ramp) and resampled(ramp, 32).shape == (1, 1024, 1)
    assert resampled(ramp.bfloat16(), 8).dtype == torch.bfloat16


def test_images_of_any_kind_become_the_same():
    pixels = photographs()
    assert torch.equal(unit_images(pixels), pixels / 255)
    torch.testing.assert_close(unit_images(pixels / 127.5 - 1), pixels / 255)
    assert unit_images(pixels[:, :1]).shape == (2, 3, 256, 256)
    with pytest.raises(UserError, match="1 or 3 channels, not 4: are these latents"):
        unit_images(torch.zeros(1, 4, 8, 8))


def test_only_strong_shrinking_is_filtered():
    """A checkerboard is gone at half the side; at REPA's 224 of 256 it is bicubic alone, as there."""
    board = ((torch.arange(256)[:, None] + torch.arange(256)) % 2).float().expand(1, 1, 256, 256)
    assert resized(board, 128).std() < 0.01
    assert torch.equal(resized(board, 224), F.interpolate(board, 224, mode="bicubic"))
    assert resized(board, 256) is board


@pytest.mark.skipif("ERW_REFERENCE_REPO" not in os.environ, reason="ERW_REFERENCE_REPO names no checkout of REPA")
@pytest.mark.parametrize(
    ("name", "theirs", "resolution"),
    [
        ("dinov2-b", "dinov2", 256),
        ("dinov2-b", "dinov2", 512),
        ("clip-l", "clip", 256),
        ("mae-b", "mae", 256),
        ("ijepa-h", "jepa", 256),
    ],
)
def test_images_are_prepared_as_by_repas_own_function(name, theirs, resolution):
    """The function is cut out of its train.py, whose imports it does not need, and run."""
    source = ast.parse((Path(os.environ["ERW_REFERENCE_REPO"]) / "train.py").read_text())
    function = [node for node in source.body if getattr(node, "name", None) == "preprocess_raw_image"]
    scope = {"torch": torch, "Normalize": torchvision.transforms.Normalize}
    for kind, (mean, std) in {"IMAGENET": IMAGENET, "CLIP": CLIP}.items():
        scope |= {f"{kind}_DEFAULT_MEAN": mean, f"{kind}_DEFAULT_STD": std}
    exec(compile(ast.Module(function, []), "train.py", "exec"), scope)
    known, pixels = small(described(name)), photographs()
    pixels = pixels.repeat_interleave(resolution // 256, 2).repeat_interleave(resolution // 256, 3)
    side = teachers.side_of(name, 16 * resolution // 256, TeacherConfig())
    model = timm.create_model(known.model, num_classes=0, img_size=side, **known.options)
    ours = TimmTeacher(name, model, side).preprocess(pixels)
    torch.testing.assert_close(ours, scope["preprocess_raw_image"](pixels, theirs), rtol=0, atol=5e-6)
