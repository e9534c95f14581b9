"""Frechet distance against closed forms and an independent implementation."""

import numpy as np
import pytest
import scipy.linalg
import torch

from erw.errors import UserError
from erw.evaluate.checked import checked_distance
from erw.evaluate.frechet import Moments, frechet_distance


def _gaussian(mean, covariance, count=100) -> Moments:
    return Moments(torch.as_tensor(mean, dtype=torch.float64), torch.as_tensor(covariance, dtype=torch.float64), count)


def _random_spd(dims: int, seed: int) -> np.ndarray:
    root = np.random.default_rng(seed).normal(size=(dims, 2 * dims))
    return root @ root.T / dims


def test_diagonal_gaussians():
    """sum((mu_a - mu_b)^2) + sum((sigma_a - sigma_b)^2)."""
    a = _gaussian([0.0, 1.0, -2.0], np.diag([1.0, 4.0, 9.0]))
    b = _gaussian([0.5, 1.0, 1.0], np.diag([4.0, 4.0, 0.25]))
    assert frechet_distance(a, b) == pytest.approx(0.25 + 9 + 1 + 6.25, rel=1e-12)


def test_shifted_mean():
    covariance = _random_spd(8, 0)
    a, b = _gaussian(np.zeros(8), covariance), _gaussian(np.full(8, 0.5), covariance)
    assert frechet_distance(a, b) == pytest.approx(2.0, rel=1e-10)


def test_scaled_covariance():
    """Equal means, S and c^2 S: (c - 1)^2 tr(S), for a covariance that is not diagonal."""
    covariance = _random_spd(8, 1)
    distance = frechet_distance(_gaussian(np.zeros(8), covariance), _gaussian(np.zeros(8), 9 * covariance))
    assert distance == pytest.approx(4 * np.trace(covariance), rel=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_the_general_matrix_square_root(seed):
    """Well-conditioned covariances that do not commute, where the general root is sound too."""
    s_a, s_b = _random_spd(12, 2 * seed), _random_spd(12, 2 * seed + 1)
    expected = np.trace(s_a) + np.trace(s_b) - 2 * np.trace(scipy.linalg.sqrtm(s_a @ s_b)).real
    a, b = _gaussian(np.zeros(12), s_a), _gaussian(np.zeros(12), s_b)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


def test_identical_features_are_at_distance_zero():
    moments = Moments.of(torch.randn(400, 16, generator=torch.Generator().manual_seed(0)))
    assert frechet_distance(moments, moments) == pytest.approx(0.0, abs=1e-12)


def test_covariances_of_low_rank_keep_their_digits():
    """Fewer samples than dimensions, S against 4 S: roots of rounding noise must not add up to something."""
    covariance = Moments.of(torch.randn(40, 256, generator=torch.Generator().manual_seed(0))).covariance
    distance = frechet_distance(_gaussian(np.zeros(256), covariance), _gaussian(np.zeros(256), 4 * covariance))
    assert distance == pytest.approx(float(covariance.trace()), rel=1e-11)


def test_moments_are_those_of_numpy_in_double_precision():
    """A large offset, so that fp32 sums would lose the covariance."""
    features = 1000 + torch.randn(500, 5, generator=torch.Generator().manual_seed(0))
    moments = Moments.of(features)
    assert moments.mean.dtype == moments.covariance.dtype == torch.float64
    assert moments.count == 500
    np.testing.assert_allclose(moments.mean, features.double().numpy().mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(moments.covariance, np.cov(features.double().numpy().T), rtol=1e-10)


def test_one_dimension():
    moments = Moments.of(torch.tensor([[0.0], [2.0]]))
    assert moments.covariance.tolist() == [[2.0]]


def test_enough_means_ten_samples_a_dimension():
    assert Moments.of(torch.randn(50, 5)).enough
    assert not Moments.of(torch.randn(49, 5)).enough


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_broken_features_are_refused(bad):
    features = torch.zeros(10, 3)
    features[4, 1] = bad
    with pytest.raises(UserError, match="features of 1 of 10 samples hold NaN or infinity"):
        Moments.of(features)


def test_one_sample_is_refused():
    with pytest.raises(UserError, match="at least 2 samples"):
        Moments.of(torch.zeros(1, 3))


def test_features_of_different_width_are_refused():
    with pytest.raises(ValueError, match="3 and 4 dimensions"):
        frechet_distance(_gaussian(np.zeros(3), np.eye(3)), _gaussian(np.zeros(4), np.eye(4)))


def test_ill_conditioned_covariances_that_commute():
    """Eigenvalues over twelve orders: sum((sqrt(a_i) - sqrt(b_i))^2), in a basis that is not the axes."""
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(40, 40)))[0]
    a, b = np.logspace(0, -12, 40), np.logspace(-12, 1, 40)
    distance = frechet_distance(*(_gaussian(np.zeros(40), basis @ np.diag(v) @ basis.T) for v in (a, b)))
    assert distance == pytest.approx(((a**0.5 - b**0.5) ** 2).sum(), rel=1e-6)


def test_rank_one_covariances():
    """u u^T and v v^T: |u|^2 + |v|^2 - 2 |u.v|, and with the identity |u|^2 + D - 2 |u|."""
    u, v = np.random.default_rng(0).normal(size=(2, 300))
    nowhere = np.zeros(300)
    ones, others = _gaussian(nowhere, np.outer(u, u)), _gaussian(nowhere, np.outer(v, v))
    assert frechet_distance(ones, others) == pytest.approx(u @ u + v @ v - 2 * abs(u @ v), rel=1e-10)
    assert frechet_distance(ones, _gaussian(nowhere, np.eye(300))) == pytest.approx(u @ u + 300 - 2 * (u @ u) ** 0.5, rel=1e-10)


def test_covariances_without_a_common_direction():
    """Ranges at right angles: the root of the product is zero."""
    a, b = np.diag([1.0, 2.0, 0, 0]), np.diag([0, 0, 3.0, 4.0])
    assert frechet_distance(_gaussian(np.zeros(4), a), _gaussian(np.zeros(4), b)) == pytest.approx(10, rel=1e-12)
    assert frechet_distance(_gaussian(np.zeros(4), a), _gaussian(np.ones(4), np.zeros((4, 4)))) == pytest.approx(7, rel=1e-12)


@pytest.mark.parametrize("fault", ["eigh", "svdvals"])
def test_a_faulty_lapack_is_noticed(monkeypatch, fault):
    """What a decomposition returned is put back into its equation."""
    right = getattr(torch.linalg, fault)
    wrong = (lambda x: (right(x)[0] * 1.001, right(x)[1])) if fault == "eigh" else (lambda x: right(x) * 1.001)
    monkeypatch.setattr(torch.linalg, fault, wrong)
    a, b = (_gaussian(np.zeros(8), _random_spd(8, seed)) for seed in (0, 1))
    with pytest.raises(UserError, match="LAPACK is at fault"):
        frechet_distance(a, b)


def test_a_matrix_that_is_no_covariance_is_refused():
    with pytest.raises(UserError, match="no covariances"):
        frechet_distance(_gaussian(np.zeros(2), np.diag([1.0, -1.0])), _gaussian(np.zeros(2), np.eye(2)))


class TestChecked:
    """The same distance by an algorithm of another kind, from another library."""

    @pytest.mark.parametrize("count", [400, 40], ids=["full rank", "fewer samples than features"])
    def test_both_ways_agree_within_their_rounding(self, count):
        generator = torch.Generator().manual_seed(0)
        a, b = (Moments.of(torch.randn(count, 64, generator=generator) * scale) for scale in (1.0, 1.3))
        checked = checked_distance(a, b)
        assert checked.distance == frechet_distance(a, b)
        assert abs(checked.second - checked.distance) <= checked.tolerance < 1e-3 * checked.distance

    def test_on_well_conditioned_features_it_is_that_of_scipy(self):
        rng = np.random.default_rng(0)
        a, b = rng.normal(size=(900, 64)), rng.normal(size=(900, 64)) @ rng.normal(size=(64, 64)) / 8 + 0.1
        cross = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
        expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * cross)
        found = checked_distance(*(Moments.of(torch.from_numpy(x)) for x in (a, b)))
        assert found.distance == pytest.approx(expected, rel=1e-6) and found.second == pytest.approx(expected, rel=1e-6)

    def test_equal_moments(self):
        moments = Moments.of(torch.randn(30, 50, generator=torch.Generator().manual_seed(0)))
        assert checked_distance(moments, moments).distance == pytest.approx(0, abs=1e-9)

    @pytest.mark.parametrize("library", ["torch", "numpy"])
    def test_a_fault_of_one_library_is_an_error(self, monkeypatch, library):
        """Wrong singular values whose squares add up rightly: the residual cannot see them."""
        a, b = (_gaussian(np.zeros(8), _random_spd(8, seed)) for seed in (0, 1))
        if library == "torch":
            monkeypatch.setattr(torch.linalg, "svdvals", lambda x: x.norm().expand(1))
        else:
            right = np.linalg.eigvalsh
            monkeypatch.setattr(np.linalg, "eigvalsh", lambda x: right(x) * 1.1)
        with pytest.raises(UserError, match="disagree.*believe neither") as refused:
            checked_distance(a, b)
        assert "\n" not in str(refused.value)
