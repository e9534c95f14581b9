"""CKNNA and CKA against their definitions written as loops, against the published code, closed forms and invariances."""

import importlib.util
import math
import os
import sys
import types
from pathlib import Path

import pytest
import torch

from erw.errors import UserError
from erw.probe.similarity import by_token, cka, cknna, hsic, unit_rows

FAULTS = ("not centred", "self is a neighbour", "neighbours in either", "one neighbour fewer", "biased", "squared scale")


def related(count: int = 24, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of two widths that have something in common, not centred, fp64."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(count, 6, generator=generator, dtype=torch.float64)
    a, b = (torch.randn(6, width, generator=generator, dtype=torch.float64) for width in (7, 5))
    noise = torch.randn(count, 5, generator=generator, dtype=torch.float64)
    return shared @ a + 0.7, shared @ b + 0.5 * noise - 0.2


def transcribed(a: torch.Tensor, b: torch.Tensor, k: int, fault: str = "") -> float:
    """CKNNA from its definition, a number at a time in Python's floats; ``fault`` plants a mistake."""
    a, b = a.tolist(), b.tolist()
    n, some = len(a), range(len(a))
    K = [[sum(x * y for x, y in zip(a[i], a[j], strict=True)) for j in some] for i in some]
    L = [[sum(x * y for x, y in zip(b[i], b[j], strict=True)) for j in some] for i in some]
    k -= fault == "one neighbour fewer"

    def neighbours(gram):
        others = [[j for j in some if j != i or fault == "self is a neighbour"] for i in some]
        return [set(sorted(others[i], key=lambda j, i=i: -gram[i][j])[:k]) for i in some]

    near_k, near_l = neighbours(K), neighbours(L)

    def kept(gram, first, second):
        join = set.union if fault == "neighbours in either" else set.intersection
        return [[gram[i][j] if j in join(first[i], second[i]) and i != j else 0.0 for j in some] for i in some]

    def independence(P, Q):
        direct = sum(P[i][j] * Q[j][i] for i in some for j in some)
        sums = sum(map(sum, P)) * sum(map(sum, Q))
        crossed = sum(P[i][m] * Q[m][j] for i in some for j in some for m in some)
        if fault == "not centred":
            return direct / (n * (n - 3))
        if fault == "biased":
            return (direct + sums / n**2 - 2 * crossed / n) / (n - 1) ** 2
        return (direct + sums / ((n - 1) * (n - 2)) - 2 * crossed / (n - 2)) / (n * (n - 3))

    shared = independence(kept(K, near_k, near_l), kept(L, near_k, near_l))
    own_k = independence(kept(K, near_k, near_k), kept(K, near_k, near_k))
    own_l = independence(kept(L, near_l, near_l), kept(L, near_l, near_l))
    scale = own_k * own_l if fault == "squared scale" else math.sqrt(own_k * own_l)
    return shared / (scale + 1e-6)


@pytest.mark.parametrize("k", [2, 5, 10])
@pytest.mark.parametrize("unit", [False, True], ids=["as they are", "unit rows"])
def test_cknna_is_its_definition(k, unit):
    a, b = related()
    if unit:
        a, b = unit_rows(a), unit_rows(b)
    assert cknna(a, b, k) == pytest.approx(transcribed(a, b, k), abs=1e-12)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_formula_shows(fault):
    a, b = (unit_rows(features) for features in related())
    assert abs(cknna(a, b, 5) - transcribed(a, b, 5, fault)) > 1e-3


def test_the_sum_of_products_is_done_without_the_product():
    K, L = (torch.randn(9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    P, Q = (x - x.diag().diag() for x in (K, L))
    n = 9
    slow = (P @ Q).trace() + P.sum() * Q.sum() / ((n - 1) * (n - 2)) - 2 * (P @ Q).sum() / (n - 2)
    assert float(hsic(K, L)) == pytest.approx(float(slow) / (n * (n - 3)), abs=1e-13)


@pytest.mark.parametrize("unit", [False, True], ids=["as they are", "unit rows"])
def test_both_are_the_published_metrics(monkeypatch, unit):
    """The published code's own functions, from a checkout that ERW_PLATONIC_REP names."""
    folder = os.environ.get("ERW_PLATONIC_REP")
    if not folder:
        pytest.skip("ERW_PLATONIC_REP names no checkout of minyoungg/platonic-rep")
    audio = types.ModuleType("torchaudio")  # for a metric of edit distances alone
    audio.functional = types.ModuleType("torchaudio.functional")
    monkeypatch.setitem(sys.modules, "torchaudio", audio)
    monkeypatch.setitem(sys.modules, "torchaudio.functional", audio.functional)
    spec = importlib.util.spec_from_file_location("published_metrics", Path(folder) / "metrics.py")
    published = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(published)
    for count, k in ((60, 10), (300, 10), (300, 25)):
        a, b = related(count, seed=count)
        if unit:
            a, b = unit_rows(a), unit_rows(b)
        assert cknna(a, b, k) == pytest.approx(published.AlignmentMetrics.cknna(a, b, topk=k), abs=1e-6)
        assert cka(a, b) == pytest.approx(published.AlignmentMetrics.cka(a, b), abs=1e-6)


# ---- what both must leave alone, and what they must not ---------------------------------------------------------------


def orthogonal(width: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(width, width, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))[0]


def test_rotation_scale_and_order_change_nothing():
    a, b = related(80)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(4))
    for measure, exact in ((cka, 1e-12), (cknna, 1e-6)):  # published CKNNA's 1e-6 in its denominator knows the scale
        first = measure(a, b)
        assert measure(3.0 * a @ orthogonal(7), 0.2 * b @ orthogonal(5)) == pytest.approx(first, abs=10 * exact)
        assert measure(a[order], b[order]) == pytest.approx(first, abs=exact)
        assert abs(measure(a[order], b) - first) > 0.05


def test_cka_is_symmetric_and_the_published_cknna_is_not():
    a, b = related(80)
    assert cka(a, b) == pytest.approx(cka(b, a), abs=1e-12)
    assert cknna(b, a) == pytest.approx(transcribed(b, a, 10), abs=1e-12)
    assert 1e-3 < abs(cknna(a, b) - cknna(b, a)) < 0.02


def test_cka_ignores_an_offset_and_its_uncentred_form_does_not():
    a, b = related(80)
    assert cka(a + 5, b - 3) == pytest.approx(cka(a, b), abs=1e-10)
    far, other = a + 100, b - 100
    uncentred = (far.T @ other).square().sum() / ((far.T @ far).norm() * (other.T @ other).norm())
    assert float(uncentred) > 0.99 > cka(far, other) + 0.2


def test_cka_in_closed_form():
    generator = torch.Generator().manual_seed(5)
    x, y = torch.randn(2, 50, 1, dtype=torch.float64, generator=generator)
    correlation = torch.corrcoef(torch.cat([x, y], dim=1).T)[0, 1]
    assert cka(x, y) == pytest.approx(float(correlation) ** 2, abs=1e-12)
    centred = torch.randn(50, 8, dtype=torch.float64, generator=generator)
    basis = torch.linalg.qr(centred - centred.mean(dim=0))[0]
    assert cka(basis, basis[:, :2]) == pytest.approx(math.sqrt(2 / 8), abs=1e-12)
    assert cka(basis[:, :4], basis[:, 4:]) == pytest.approx(0, abs=1e-12)


def test_the_ends_of_the_scale():
    a, _ = related(200)
    assert cknna(unit_rows(a), unit_rows(a)) == pytest.approx(1, abs=1e-3)
    generator = torch.Generator().manual_seed(6)
    strangers = (unit_rows(torch.randn(200, 40, generator=generator)) for _ in range(2))
    assert abs(cknna(*strangers)) < 0.1


def test_by_token_averages_positions():
    a, b = torch.randn(2, 30, 3, 4, generator=torch.Generator().manual_seed(7))
    assert by_token(cka, a, b) == pytest.approx(sum(cka(a[:, i], b[:, i]) for i in range(3)) / 3)


def test_bad_features_are_refused():
    a, b = related(10)
    with pytest.raises(UserError, match="needs at least 11 images, there are 10"):
        cknna(a, b)
    with pytest.raises(UserError, match="NaN or infinity"):
        cka(a, b * torch.nan)
    with pytest.raises(UserError, match="the same for every image"):
        cka(torch.ones(10, 3), b)
    with pytest.raises(ValueError, match=r"\(N, D\) and \(N, E\)"):
        cka(a, b[:5])
    with pytest.raises(ValueError, match="k of 2 or more"):
        cknna(a, b, 1)
