"""Reference statistics: computed, stored, read back, and refused where they are of something else."""

import numpy as np
import pytest
import torch

from erw.errors import UserError
from erw.evaluate.extract import extract
from erw.evaluate.frechet import Moments, frechet_distance
from erw.evaluate.images import open_images
from erw.evaluate.statistics import open_reference, read_statistics, statistics_of

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (40, 4, 4, 3), dtype=np.uint8)


class Corners:
    """Three channels of two pixels: 6 features, and the first three as spatial ones."""

    name, width = "inception", 6

    def __init__(self, **facts):
        self.facts = {"network": "corners", "resize": "none"} | facts

    def __call__(self, pixels):
        features = pixels[:, :, [0, 3], [0, 3]].flatten(1).float()
        return {"features": features, "spatial": features[:, :3]}


@pytest.fixture
def images(tmp_path):
    np.savez(tmp_path / "real.npz", arr_0=PIXELS)
    return tmp_path / "real.npz"


def test_what_is_saved_is_read_back_bit_for_bit(images, tmp_path):
    made = open_reference(str(images), Corners())
    made.save(tmp_path / "new" / "stats.npz")
    read = open_reference(str(tmp_path / "new" / "stats.npz"), Corners())
    for ours, theirs in ((made.moments, read.moments), (made.spatial, read.spatial)):
        assert torch.equal(ours.mean, theirs.mean) and torch.equal(ours.covariance, theirs.covariance) and theirs.count == 40
    assert torch.equal(made.features, read.features) and made.protocol == read.protocol
    assert read.protocol["count"] == 40 and read.protocol["image_size"] == [4, 4] and len(read.protocol["sha256"]) == 64
    np.testing.assert_allclose(read.moments.covariance, np.cov(made.features.double().numpy().T), rtol=1e-12)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["stats.npz"]


def test_statistics_of_something_else_are_refused(images, tmp_path):
    open_reference(str(images), Corners()).save(tmp_path / "stats.npz")
    for other in ({"resize": "another"}, {"network": "another"}, {"weights": {"sha256": "0"}}):
        with pytest.raises(UserError, match=f"was made with {next(iter(other))} ") as refused:
            open_reference(str(tmp_path / "stats.npz"), Corners(**other))
        assert "\n" not in str(refused.value)


def test_adms_batch_gives_its_moments_and_features_of_its_images(tmp_path):
    """mu and sigma are of a whole data set, of which arr_0 is a part."""
    whole = torch.from_numpy(RNG.normal(size=(500, 6)))
    moments = Moments.of(whole)
    arrays = {"mu": moments.mean, "sigma": moments.covariance, "mu_s": moments.mean[:3], "sigma_s": moments.covariance[:3, :3]}
    np.savez(tmp_path / "adm.npz", arr_0=PIXELS, **{name: array.numpy() for name, array in arrays.items()})
    reference = open_reference(str(tmp_path / "adm.npz"), Corners())
    assert frechet_distance(reference.moments, moments) < 1e-12 and reference.spatial.mean.tolist() == moments.mean[:3].tolist()
    assert torch.equal(reference.features, extract(open_images(tmp_path / "adm.npz"), Corners()).features)
    assert reference.protocol["features_of"] == 40 and "unknown" in reference.protocol["count"]
    np.savez(tmp_path / "moments.npz", mu=moments.mean, sigma=moments.covariance)
    assert open_reference(str(tmp_path / "moments.npz"), Corners()).features is None


def test_another_networks_reference_comes_of_the_batchs_images(tmp_path):
    """Its moments are Inception's, and say nothing of other features."""
    np.savez(tmp_path / "adm.npz", arr_0=PIXELS, mu=np.zeros(6), sigma=np.eye(6))
    corners = Corners()
    corners.name = "other"
    reference = open_reference(str(tmp_path / "adm.npz"), corners)
    assert reference.moments.count == 40 and reference.moments.mean.abs().min() > 1


def test_no_more_than_ten_thousand_features_are_kept_and_from_everywhere(monkeypatch, images):
    monkeypatch.setattr("erw.evaluate.statistics.KEPT", 10)
    found = extract(open_images(images), Corners())
    kept = statistics_of(open_images(images), found, Corners()).features
    assert len(kept) == 10 and torch.equal(kept[0], found.features[0]) and torch.equal(kept[-1], found.features[-1])


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"mu": np.zeros(6)}, "mu and no sigma"),
        ({"mu": np.zeros(6), "sigma": np.eye(5)}, "are no mean and covariance"),
        ({"mu": np.full(6, np.nan), "sigma": np.eye(6)}, "NaN or infinity"),
        ({"mu": np.zeros(6), "sigma": np.eye(6), "protocol": "{"}, "no readable protocol"),
        ({"mu": np.zeros(6), "sigma": np.eye(6), "protocol": '{"count": 9}'}, "was made with features None"),
        ({"mu": np.zeros(6), "sigma": np.eye(6), "protocol": '{"count": 9}', "features": np.zeros((3, 5))}, "do not fit mu"),
        ({"sigma": np.eye(6), "protocol": '{"count": 9}'}, "lacks mu"),
        ({"images": np.zeros(3)}, "not arr_0"),
    ],
    ids=["no sigma", "shapes", "nan", "protocol", "network", "features", "no mu", "neither"],
)
def test_broken_statistics_get_one_line(arrays, says, tmp_path):
    np.savez(tmp_path / "stats.npz", **arrays)
    with pytest.raises(UserError, match=says) as refused:
        open_reference(str(tmp_path / "stats.npz"), Corners())
    assert "stats.npz" in str(refused.value) and "\n" not in str(refused.value)


def test_adms_batch_is_no_statistics_of_ours(tmp_path):
    np.savez(tmp_path / "adm.npz", mu=np.zeros(6), sigma=np.eye(6))
    with pytest.raises(UserError, match="lacks protocol: write statistics with erw eval --save-reference"):
        read_statistics(tmp_path / "adm.npz")
