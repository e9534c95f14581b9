"""The digits: their split, the teachers and the judge trained on them, and the cache these live in."""

import os
import threading
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from erw import cache
from erw.cache import cached_weights, reproducible
from erw.data import digits
from erw.data.digits import Augmentation, augment
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


# ---- split ------------------------------------------------------------------------------------------------------------


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


# ---- augmentation -----------------------------------------------------------------------------------------------------

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


# ---- teachers ---------------------------------------------------------------------------------------------------------


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
    assert float(teachers.nt_xent(views)) == pytest.approx(np.mean(terms), rel=1e-12)


# ---- judge ------------------------------------------------------------------------------------------------------------


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


# ---- cache ------------------------------------------------------------------------------------------------------------


class _Builder:
    """A build that counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        weights = {"w": torch.arange(6.0).view(2, 3).T, "n": torch.tensor(3), "h": torch.ones(2, dtype=torch.bfloat16)}
        return weights, {"seconds": 0.1, "flops": 7}


def test_cache_builds_once_and_gives_the_same_back(own_cache):
    build = _Builder()
    first, facts = cached_weights("net", {"lr": 0.1}, build)
    second, _ = cached_weights("net", {"lr": 0.1}, build)
    assert build.calls == 1
    assert facts == {"seconds": 0.1, "flops": 7}
    for name, expected in build()[0].items():
        assert first[name].dtype == expected.dtype
        assert torch.equal(first[name], expected) and torch.equal(second[name], expected)


def test_cache_tells_fingerprints_names_and_torch_versions_apart(own_cache, monkeypatch):
    build = _Builder()
    cached_weights("net", {"lr": 0.1}, build)
    cached_weights("net", {"lr": 0.2}, build)
    cached_weights("other", {"lr": 0.1}, build)
    monkeypatch.setattr(torch, "__version__", "0.0.0")
    cached_weights("net", {"lr": 0.1}, build)
    assert build.calls == 4
    assert len(list(own_cache.glob("*.safetensors"))) == 4


def _truncate(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _flip_a_bit(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def _foreign(data: bytes) -> bytes:
    from safetensors.torch import save

    return save({"w": torch.zeros(2)})


def _empty(data: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [_truncate, _flip_a_bit, _foreign, _empty])
def test_cache_rebuilds_a_damaged_file_and_says_so(own_cache, capsys, damage):
    build = _Builder()
    cached_weights("net", {}, build)
    (path,) = own_cache.glob("net-*.safetensors")
    path.write_bytes(damage(path.read_bytes()))
    capsys.readouterr()
    weights, _ = cached_weights("net", {}, build)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and str(path) in lines[0] and "training net again" in lines[0]
    assert build.calls == 2
    assert torch.equal(weights["w"], build()[0]["w"])


@pytest.mark.parametrize("error", [RuntimeError("out of luck"), OSError(5, "out of luck")])
def test_cache_keeps_nothing_of_a_build_that_fails(own_cache, error):
    """Nor does it take the build's errors for its own."""

    def fail():
        raise error

    with pytest.raises(type(error), match="out of luck") as raised:
        cached_weights("net", {}, fail)
    assert raised.value is error
    assert not list(own_cache.glob("net-*.safetensors"))


def test_cache_folder_that_is_a_file(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("ERW_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="set ERW_CACHE"):
        cached_weights("net", {}, _Builder())


def test_cache_file_that_is_a_folder(own_cache):
    cached_weights("net", {}, _Builder())
    (path,) = own_cache.glob("net-*.safetensors")
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="set ERW_CACHE"):
        cached_weights("net", {}, _Builder())


def test_cache_lets_one_of_several_build(own_cache):
    """The lock belongs to the opened file, not to the process, so threads stand for ranks here."""
    build, results = _Builder(), []

    def slowly():
        time.sleep(0.3)
        return build()

    threads = [threading.Thread(target=lambda: results.append(cached_weights("net", {}, slowly))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert build.calls == 1
    assert len(results) == 3


def test_reproducible_restores_state_after_an_error():
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    with pytest.raises(RuntimeError), reproducible(0):
        torch.rand(3)
        raise RuntimeError
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_source_digest_follows_the_source(tmp_path):
    file = tmp_path / "a.py"
    file.write_text("steps = 1")
    before = cache.source_digest(str(file))
    file.write_text("steps = 2")
    assert cache.source_digest(str(file)) != before
