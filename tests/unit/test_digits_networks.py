"""The networks trained on the digits: teachers, whose tokens are aligned with, and the judge that measures samples."""

import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from erw.data import digits
from erw.errors import UserError
from erw.evaluate.digits import DigitsJudge, load_judge
from erw.teachers import digits as teachers
from erw.teachers.digits import DigitsTeacher, Schedule, linear_probe, load_teacher

SHORT = Schedule(steps=2, batch=32)


@pytest.fixture(scope="module", autouse=True)
def cache_of_this_module(tmp_path_factory):
    """Train from nothing, away from the user's cache, unless $ERW_CACHE names one to share."""
    with pytest.MonkeyPatch.context() as patch:
        if not os.environ.get("ERW_CACHE"):
            patch.setenv("ERW_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def contrastive() -> DigitsTeacher:
    return load_teacher("digits-contrastive", "cpu")


@pytest.fixture(scope="module")
def supervised() -> DigitsTeacher:
    return load_teacher("digits-supervised", "cpu")


@pytest.fixture(scope="module")
def judge() -> DigitsJudge:
    return load_judge("cpu")


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ERW_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.slow
def test_mean_tokens_tell_digits_apart(contrastive, supervised):
    assert linear_probe(contrastive) >= 0.94
    assert linear_probe(supervised) >= 0.94


@pytest.mark.slow
def test_tokens_are_fp32_frozen_and_independent_of_the_batch(contrastive):
    images = digits.load("held_out")[0][:32]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tokens = contrastive.train().tokens(images)
    assert tokens.shape == (32, contrastive.spec.grid**2, contrastive.spec.width) == (32, 16, 96)
    assert tokens.dtype == torch.float32 and not tokens.requires_grad
    assert not any(p.requires_grad for p in contrastive.parameters())
    torch.testing.assert_close(contrastive.tokens(images[3:4])[0], tokens[3], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_tokens_of_one_image_differ_between_positions(contrastive):
    tokens = F.normalize(contrastive.tokens(digits.load("held_out")[0]), dim=-1)
    cosines = tokens @ tokens.transpose(1, 2)
    between = (cosines.sum(dim=(1, 2)) - 16) / (16 * 15)
    assert between.mean() < 0.4


@pytest.mark.slow
@pytest.mark.parametrize("axis", [1, 2], ids=["down", "right"])
def test_shifting_the_image_by_two_pixels_moves_the_tokens_by_one(contrastive, axis):
    """Row order: an image moved down moves its tokens to the next row of the 4x4 grid, not along the row."""
    images = digits.load("held_out")[0]
    shifted = F.pad(images, (0, 0, 2, -2) if axis == 1 else (2, -2, 0, 0), value=-1.0)
    before, after = (contrastive.tokens(x).unflatten(1, (4, 4)) for x in (images, shifted))

    def agreement(steps: int, along: int) -> float:
        """Mean cosine between tokens before, moved ``steps`` places, and tokens after, where nothing fell off."""
        overlap = F.cosine_similarity(before.narrow(along, 0, 4 - steps), after.narrow(along, steps, 4 - steps), dim=-1)
        return float(overlap.mean())

    moved = agreement(1, axis)
    assert moved > 0.5
    assert moved > agreement(0, axis) + 0.2
    assert moved > agreement(1, 3 - axis) + 0.2


def test_contrastive_teacher_is_the_same_whatever_the_labels(own_cache, monkeypatch):
    """The whole path of `load_teacher`, with true and with shuffled labels; the supervised teacher does notice."""
    images, labels = digits.load("train")
    trainers = {"digits-contrastive": teachers.train_contrastive, "digits-supervised": teachers.train_supervised}
    for name in ("train_contrastive", "train_supervised"):
        monkeypatch.setattr(teachers, name, _shortened(getattr(teachers, name)))
    changed = {}
    for name in trainers:
        weights = []
        for kind, labels_seen in (("true", labels), ("shuffled", labels.flip(0))):
            monkeypatch.setenv("ERW_CACHE", str(own_cache / kind))
            monkeypatch.setattr(digits, "load", lambda split, seen=labels_seen: (images, seen))
            weights.append(load_teacher(name, "cpu").state_dict())
        changed[name] = any(not torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    assert changed == {"digits-contrastive": False, "digits-supervised": True}


def _shortened(train):
    return lambda *data: train(*data, schedule=SHORT)


def test_training_depends_on_nothing_around_it():
    """Global seed, thread count, default dtype and inference mode; all are as they were afterwards."""
    images = digits.load("train")[0]
    torch.manual_seed(1)
    first, facts = teachers.train_contrastive(images, SHORT)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        torch.set_default_dtype(torch.float64)
        torch.manual_seed(2)
        state = torch.get_rng_state()
        with torch.inference_mode():
            second, _ = teachers.train_contrastive(images, SHORT)
        assert torch.equal(state, torch.get_rng_state())
        assert torch.get_num_threads() == 2
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(threads)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert facts["training_flops"] > 0 and facts["training_seconds"] > 0


def test_training_flops_grow_with_the_steps():
    images = digits.load("train")[0]
    once = teachers.train_contrastive(images, Schedule(steps=2, batch=32))[1]["training_flops"]
    more = teachers.train_contrastive(images, Schedule(steps=3, batch=32))[1]["training_flops"]
    assert more * 2 == once * 3


@pytest.mark.slow
def test_loading_leaves_the_random_state_alone(contrastive, judge):
    state = torch.get_rng_state()
    load_teacher("digits-contrastive", "cpu")
    load_judge("cpu")
    assert torch.equal(state, torch.get_rng_state())


def test_unknown_teacher_is_refused():
    with pytest.raises(UserError, match="choose one of digits-contrastive, digits-supervised"):
        load_teacher("digits-dino", "cpu")


@pytest.mark.slow
def test_images_of_another_size_are_refused(contrastive, judge):
    with pytest.raises(UserError, match=r"takes \(B, 1, 8, 8\)"):
        contrastive.tokens(torch.zeros(2, 4, 32, 32))
    with pytest.raises(UserError, match=r"judges \(N, 1, 8, 8\)"):
        judge.features(torch.zeros(2, 3, 8, 8))


def test_nt_xent_against_its_definition():
    """-log of the partner's share of exp(cosine / temperature) among the 2B - 1 other views, averaged."""
    views = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    unit = (views / views.norm(dim=1, keepdim=True)).numpy()
    terms = []
    for i in range(6):
        weight = {k: np.exp(unit[i] @ unit[k] / 0.2) for k in range(6) if k != i}
        terms.append(-np.log(weight[(i + 3) % 6] / sum(weight.values())))
    assert float(teachers.nt_xent(views, 0.2)) == pytest.approx(np.mean(terms), rel=1e-12)


@pytest.mark.slow
def test_judge_knows_held_out_digits(judge):
    held_out, answers = digits.load("held_out")
    figures = judge.evaluate(held_out, answers)
    assert set(figures) == {"frechet", "accuracy", "memorised"}
    assert figures["accuracy"] >= 0.975
    assert figures["frechet"] == pytest.approx(0.0, abs=1e-6)
    assert figures["memorised"] == pytest.approx(0.05, abs=0.005)
    assert judge.features(held_out).shape == (360, 32)
    assert judge.reference.enough


@pytest.mark.slow
def test_judge_ranks_digits_before_poor_ones_before_noise(judge):
    images, labels = digits.load("train")
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(images.shape, generator=generator)
    real = judge.evaluate(images, labels)
    poor = judge.evaluate((images + 0.4 * noise).clamp(-1, 1), labels)
    none = judge.evaluate(noise.clamp(-1, 1), labels)
    assert real["frechet"] < 1.5 < poor["frechet"] < 20 < none["frechet"]
    assert real["accuracy"] > poor["accuracy"] > none["accuracy"]
    assert none["accuracy"] < 0.3
    assert (real["memorised"], none["memorised"]) == (1.0, 0.0)


@pytest.mark.slow
def test_judge_notices_wrong_and_missing_classes(judge):
    images, labels = digits.load("train")
    assert judge.evaluate(images, (labels + 1) % 10)["accuracy"] < 0.05
    kept = labels != 3
    assert judge.evaluate(images[kept], labels[kept])["frechet"] > 3 * judge.evaluate(images, labels)["frechet"]


@pytest.mark.slow
def test_judge_refuses_broken_samples(judge):
    images = torch.zeros(20, 1, 8, 8)
    images[7, 0, 2, 2] = torch.nan
    with pytest.raises(UserError, match="features of 1 of 20 samples"):
        judge.evaluate(images, torch.zeros(20, dtype=torch.int64))
    with pytest.raises(ValueError, match="20 images but 3 labels"):
        judge.evaluate(images, torch.zeros(3, dtype=torch.int64))


@pytest.mark.slow
def test_judge_and_teachers_are_different_networks(judge, contrastive, supervised):
    """No convolution, no weight of the same shape, and features that no linear map makes of the teacher's.

    All of them know the ten classes, so only what varies within a class can tell the networks apart.
    """
    assert not any(isinstance(module, torch.nn.Conv2d) for module in judge.modules())
    shapes = {tuple(p.shape) for p in judge.parameters() if p.ndim > 1}
    (images, labels), (held_out, answers) = digits.load("train"), digits.load("held_out")
    wanted, judged = _within(judge.features(images), labels), _within(judge.features(held_out), answers)
    for teacher in (contrastive, supervised):
        assert not shapes & {tuple(p.shape) for p in teacher.parameters() if p.ndim > 1}
        fitted = torch.linalg.lstsq(_within(teacher.tokens(images).mean(dim=1), labels), wanted).solution
        rest = judged - _within(teacher.tokens(held_out).mean(dim=1), answers) @ fitted
        assert rest.square().sum() > 0.2 * judged.square().sum()


def _within(features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Features (N, D) less the mean of their class."""
    means = torch.stack([features[labels == label].mean(dim=0) for label in range(10)])
    return features - means[labels]
