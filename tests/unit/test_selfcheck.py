"""The self-check on a batch made as ADM's are: it passes, and notices what it is for."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from erw.errors import UserError
from erw.evaluate import selfcheck
from erw.evaluate.extract import extract
from erw.evaluate.frechet import Moments
from erw.evaluate.images import open_images
from erw.evaluate.metrics import measure
from erw.evaluate.selfcheck import self_check
from erw.evaluate.statistics import open_reference

pytest.importorskip("torch_fidelity", reason="needs pip install 'erw[eval]'")
CPU = torch.device("cpu")
BATCH = "VIRTUAL_imagenet256_labeled.npz"


class Blur:
    """Random features of images that were resized in a way of one's own."""

    name, width, facts = "inception", 12, {"network": "blur"}

    def __init__(self, **resize):
        self.resize = {"mode": "bilinear", "align_corners": False} | resize
        self.weight = torch.randn(3 * 25, 12, generator=torch.Generator().manual_seed(0)) / 50

    def __call__(self, pixels):
        images = F.interpolate(pixels.float(), 5, **self.resize)
        features = (images.flatten(1) / 25 @ self.weight).relu()
        return {"features": features, "spatial": features[:, :4], "logits": features}


@pytest.fixture
def batch(tmp_path, monkeypatch):
    """Moments of 3,000 images and a part of 300 of them, with the score that they have."""
    pixels = np.random.default_rng(0).integers(0, 256, (3000, 11, 11, 3), dtype=np.uint8)
    np.savez(tmp_path / "all.npz", arr_0=pixels)
    found = extract(open_images(tmp_path / "all.npz"), Blur())
    whole, spatial = Moments.of(found.features), Moments.of(found.spatial)
    moments = {"mu": whole.mean, "sigma": whole.covariance, "mu_s": spatial.mean, "sigma_s": spatial.covariance}
    np.savez(tmp_path / BATCH, arr_0=pixels[:300], **moments)
    np.savez(tmp_path / "admnet_guided_upsampled_imagenet256.npz", arr_0=pixels[300:800])
    use(monkeypatch, Blur())
    score, _ = measure(extract(open_images(tmp_path / BATCH), Blur()), open_reference(str(tmp_path / BATCH), Blur()), CPU)
    monkeypatch.setitem(selfcheck.KNOWN, BATCH, {"inception_score": (score["inception_score"], 1e-6)})
    return tmp_path / BATCH


@pytest.fixture(autouse=True)
def few_subsets(monkeypatch):
    monkeypatch.setattr("erw.evaluate.metrics.KID_SUBSETS", 2)


def use(monkeypatch, extractor):
    monkeypatch.setattr(selfcheck, "load_extractor", lambda name, device, weights: extractor)


def test_a_right_evaluator_passes(batch):
    lines = self_check(batch, None, None, CPU)
    assert [line.split(":")[0] for line in lines] == [
        "fid of the stored moments to themselves",
        "sfid of the stored moments to themselves",
        "squared shift of the mean of features",
        "spread of features",
        "squared shift of the mean of spatial features",
        "spread of spatial features",
        "inception_score",
    ]


@pytest.mark.parametrize("resize", [{"antialias": True}, {"mode": "bicubic"}, {"align_corners": True}])
def test_another_resize_is_noticed(batch, monkeypatch, resize):
    use(monkeypatch, Blur(**resize))
    with pytest.raises(UserError, match="the mean of features is off by|spread of features is"):
        self_check(batch, None, None, CPU)


def test_other_weights_are_noticed(batch, monkeypatch):
    other = Blur()
    other.weight = other.weight + 1e-3
    use(monkeypatch, other)
    with pytest.raises(UserError, match="the mean of features is off by .* chance explains"):
        self_check(batch, None, None, CPU)


def test_another_score_is_noticed(batch, monkeypatch):
    monkeypatch.setitem(selfcheck.KNOWN, BATCH, {"inception_score": (338.01, 1.5)})
    with pytest.raises(UserError, match="inception_score is .*, known is 338.01, 1.5 either way"):
        self_check(batch, None, None, CPU)


def test_published_samples_against_the_batch(batch, monkeypatch):
    samples = batch.with_name("admnet_guided_upsampled_imagenet256.npz")
    with pytest.raises(UserError, match="inception_score is .*, known is 215.837"):
        self_check(samples, str(batch), None, CPU)
    figures, _ = measure(extract(open_images(samples), Blur()), open_reference(str(batch), Blur()), CPU)
    known = {name: (value, 1e-6) for name, value in figures.items() if name in selfcheck.KNOWN[samples.name]}
    assert set(known) == {"inception_score", "fid", "sfid", "precision", "recall"}
    monkeypatch.setitem(selfcheck.KNOWN, samples.name, known)
    assert len(self_check(samples, str(batch), None, CPU)) == 5


def test_other_files_get_one_line(batch):
    with pytest.raises(UserError, match="no moments of its own"):
        self_check(batch.with_name("all.npz"), None, None, CPU)
    with pytest.raises(UserError, match="knows no figures of all.npz"):
        self_check(batch.with_name("all.npz"), str(batch), None, CPU)
