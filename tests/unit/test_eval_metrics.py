"""Precision, recall, KID and the Inception Score against their definitions, written out in double precision."""

import numpy as np
import pytest
import torch

from erw.errors import UserError
from erw.evaluate.extract import Extracted
from erw.evaluate.frechet import Moments, frechet_distance
from erw.evaluate.metrics import inception_score, kid, measure, precision_recall
from erw.evaluate.statistics import Statistics

pytest.importorskip("torch_fidelity", reason="needs pip install 'erw[eval]'")
CPU = torch.device("cpu")


def _features(count: int, seed: int, scale: float = 1.0, shift: float = 0.0, width: int = 24) -> torch.Tensor:
    return scale * torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) + shift


def _inside(points: np.ndarray, manifold: np.ndarray) -> float:
    """The share of ``points`` within the third neighbour's distance of some point of ``manifold``."""
    among = np.linalg.norm(manifold[:, None] - manifold[None], axis=2)
    radii = np.sort(among, axis=1)[:, 3]
    return (np.linalg.norm(points[:, None] - manifold[None], axis=2) <= radii).any(axis=1).mean()


@pytest.mark.parametrize(("scale", "shift"), [(0.7, 0.0), (1.4, 0.1), (1.0, 0.4)])
def test_precision_and_recall_are_kynkaanniemis(scale, shift):
    samples, reference = _features(150, 0, scale, shift), _features(130, 1)
    precision, recall = precision_recall(samples, reference, CPU)
    ours, theirs = samples.double().numpy(), reference.double().numpy()
    assert precision == pytest.approx(_inside(ours, theirs), abs=1e-6)
    assert recall == pytest.approx(_inside(theirs, ours), abs=1e-6)
    assert 0 < precision < 1 or 0 < recall < 1


def test_samples_near_one_mode_are_precise_and_recall_little():
    precision, recall = precision_recall(_features(200, 0, 0.1), _features(200, 1), CPU)
    assert precision > 0.99 and recall < 0.05


def _mmd(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimate, Binkowski et al., Eq. 4."""
    kernel = lambda a, b: (a @ b.T / a.shape[1] + 1) ** 3  # noqa: E731
    m = len(x)
    within = sum((k.sum() - np.trace(k)) / (m * (m - 1)) for k in (kernel(x, x), kernel(y, y)))
    return within - 2 * kernel(x, y).mean()


def test_kid_is_the_unbiased_mmd_over_the_subsets():
    samples, reference = _features(70, 0, shift=0.3), _features(50, 1)
    mean, deviation, how = kid(samples, reference)
    assert how == {"subsets": 100, "size": 50, "seed": 2020}
    rng = np.random.RandomState(2020)
    found = []
    for _ in range(100):
        rows = rng.choice(70, 50, replace=False), rng.choice(50, 50, replace=False)
        found.append(_mmd(*(x.double().numpy()[r] for x, r in zip((samples, reference), rows, strict=True))))
    assert mean == pytest.approx(np.mean(found), rel=1e-10) and deviation == pytest.approx(np.std(found), rel=1e-8)


def test_kid_of_everything_is_computed_once_and_of_equals_is_about_zero():
    mean, deviation, how = kid(_features(60, 0), _features(60, 1))
    assert how["subsets"] == 1 and deviation == 0
    assert mean == pytest.approx(_mmd(_features(60, 0).double().numpy(), _features(60, 1).double().numpy()), rel=1e-10)
    assert abs(mean) < 0.05 < kid(_features(60, 0, shift=0.5), _features(60, 1))[0]


def test_inception_score():
    """k sure and equally frequent classes give k; the same guess always gives 1."""
    sure = 40.0 * torch.eye(8)[torch.arange(64) % 8]
    assert inception_score(sure) == pytest.approx(8, rel=1e-6)
    assert inception_score(torch.ones(64, 8)) == pytest.approx(1, rel=1e-6)
    # Two parts of 5,000, each of one class: no part is diverse, and the mean of the parts says so.
    parts = 40.0 * torch.eye(2)[torch.arange(10_000) // 5000]
    assert inception_score(parts) == pytest.approx(1, rel=1e-6)


def test_a_whole_measurement():
    samples, real = _features(90, 0, 1.1), _features(80, 1)
    reference = Statistics(Moments.of(real), None, real, {})
    figures, notes = measure(Extracted(samples, None, None, ""), reference, CPU)
    assert list(figures) == ["frechet", "precision", "recall", "kid", "kid_sd"]
    assert figures["frechet"] == frechet_distance(Moments.of(samples), Moments.of(real))
    assert abs(notes["frechet"]["second method"] - figures["frechet"]) <= notes["frechet"]["tolerance"]
    moments_alone = Statistics(Moments.of(real), Moments.of(real), None, {})
    logits = torch.randn(90, 8, generator=torch.Generator().manual_seed(0))
    figures, _ = measure(Extracted(samples, samples, logits, ""), moments_alone, CPU)
    assert list(figures) == ["fid", "sfid", "inception_score"] and figures["fid"] == figures["sfid"]


def test_bad_features_get_one_line():
    real = _features(80, 1)
    reference = Statistics(Moments.of(real), None, real, {})
    broken = _features(90, 0)
    broken[3, 2] = torch.nan
    with pytest.raises(UserError, match="1 of 90 samples hold NaN"):
        measure(Extracted(broken, None, None, ""), reference, CPU)
    with pytest.raises(UserError, match="25 features, the reference 24"):
        measure(Extracted(_features(90, 0, width=25), None, None, ""), reference, CPU)
    with pytest.raises(UserError, match="more than 3 images a side, not 3"):
        precision_recall(_features(3, 0), real, CPU)
