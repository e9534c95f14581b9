"""The folder of arrays: read right, and every fault named."""

import json

import numpy as np
import pytest
import torch

from erw import rng
from erw.data.arrays import ArrayDataset
from erw.errors import UserError
from erw.latents import LatentConfig, VaeLatents
from erw.rng import Purpose


@pytest.fixture
def folder(tmp_path):
    """Ten rows of moments with features."""
    generator = np.random.default_rng(0)
    np.save(tmp_path / "latents.npy", generator.normal(size=(10, 8, 4, 4)).astype(np.float16))
    np.save(tmp_path / "labels.npy", np.arange(10))
    np.save(tmp_path / "features.npy", generator.normal(size=(10, 4, 6)).astype(np.float16))
    teacher = {"name": "dinov2-b", "width": 6, "grid": 2, "flops_per_image": 1000}
    (tmp_path / "manifest.json").write_text(json.dumps({"num_classes": 10, "teachers": [teacher]}))
    return tmp_path


def test_rows_come_in_the_order_asked_for(folder):
    dataset = ArrayDataset(str(folder))
    batch = dataset.fetch(np.array([7, 2, 7, 0]))
    stored = np.load(folder / "latents.npy")
    assert torch.equal(batch["labels"], torch.tensor([7, 2, 7, 0]))
    assert np.array_equal(batch["latents"].numpy(), stored[[7, 2, 7, 0]].astype(np.float32))
    assert dataset.features("dinov2-b", np.array([7, 2, 7, 0])).shape == (4, 4, 6) and dataset.cached["dinov2-b"].flops == 1000


def test_posterior_samples_have_the_moments_and_depend_on_the_position():
    space = VaeLatents(LatentConfig(kind="vae", scale=0.5, shift=1.0))
    moments = torch.cat([torch.full((2000, 2, 4, 4), 3.0), torch.full((2000, 2, 4, 4), 0.2)], dim=1)
    index = torch.arange(2000)
    latents = space.draw(moments, 0, index)
    assert latents.mean() == pytest.approx((3.0 - 1.0) * 0.5, abs=1e-3)
    assert latents.std() == pytest.approx(0.2 * 0.5, rel=0.01)
    assert torch.equal(space.draw(moments[5:9], 0, index[5:9]), latents[5:9])
    assert not torch.equal(space.draw(moments[5:9], 0, index[6:10]), latents[5:9])
    expected = rng.normal(0, index[:1], Purpose.POSTERIOR, (2, 4, 4)) * 0.2 + 3.0
    assert torch.allclose(latents[:1], (expected - 1.0) * 0.5)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda f: (f / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda f: (f / "manifest.json").write_text("{"), "not a manifest"),
        (lambda f: (f / "manifest.json").write_text('{"teacher": null}'), "num_classes"),
        (lambda f: (f / "latents.npy").write_bytes(b"\x93NUMPY"), "cannot be read"),
        (lambda f: (f / "labels.npy").unlink(), "labels.npy cannot be read"),
        (lambda f: np.save(f / "labels.npy", np.arange(9)), "has 9 rows, latents.npy has 10"),
        (lambda f: np.save(f / "labels.npy", np.arange(10) + 1), "outside 0..9"),
        (lambda f: np.save(f / "labels.npy", np.arange(10) - 1), "outside 0..9"),
        (lambda f: np.save(f / "features.npy", np.zeros((10, 9, 6), np.float16)), "gives \\(4, 6\\)"),
        (lambda f: np.save(f / "latents.npy", np.zeros((10, 8, 4, 5), np.float16)), "not square"),
        (lambda f: np.save(f / "latents.npy", np.zeros((10, 8), np.float16)), "must have 4 dimensions"),
    ],
)
def test_faults_are_named(folder, spoil, says):
    spoil(folder)
    with pytest.raises(UserError, match=says):
        ArrayDataset(str(folder))


def test_a_missing_folder_is_named():
    with pytest.raises(UserError, match="'/nowhere/at/all' is not a folder"):
        ArrayDataset("/nowhere/at/all")
    with pytest.raises(UserError, match="--data.path"):
        ArrayDataset("")
