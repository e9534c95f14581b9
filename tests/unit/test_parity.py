"""`erw.bench.parity` passes where both sides compute the same and fails where they do not."""

import os
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from erw.bench import parity
from erw.bench._parity_report import PUBLISHED_MILLIONS, Check, Count, counts, report
from erw.bench.parity import Problem, check, fixed_draws, relative_error
from erw.bench.published import load_published
from erw.bench.reference import ReferenceSiT, reference_losses
from erw.models.sit import SiTConfig, sized

CONFIG = SiTConfig(depth=3, width=64, num_heads=4, input_size=8, num_classes=10)
PROBLEM = Problem(config=CONFIG, encoder_depth=2, feature_width=24, batch=3)
SHAPE = {"encoder_depth": 2, "feature_width": 24}
build = partial(ReferenceSiT, CONFIG, **SHAPE)


def failed(checks: list[Check]) -> set[str]:
    return {check.quantity for check in checks if not check.passed}


def test_fp64_agrees_with_the_reference_to_1e_9():
    checks = check(PROBLEM, build, reference_losses)
    parameters = [name for name, p in build().named_parameters() if p.requires_grad]
    assert {c.quantity for c in checks} == {f"gradient {name}" for name in parameters} | {
        "position table", "velocity", "denoising loss", "alignment loss"
    }  # fmt: skip
    assert all(c.limit == 1e-9 for c in checks)
    assert failed(checks) == set()


def test_fp32_agrees_with_the_reference_to_1e_5():
    checks = check(replace(PROBLEM, dtype=torch.float32), build, reference_losses)
    assert all(c.limit == 1e-5 for c in checks)
    assert failed(checks) == set()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_one_weight_changed_by_a_hundredth_fails(dtype):
    found = failed(check(replace(PROBLEM, dtype=dtype), build, reference_losses, perturb=0.01))
    assert {"velocity", "denoising loss", "gradient blocks.0.attn.qkv.weight"} <= found
    assert "position table" not in found


def _exact_gelu() -> nn.Module:
    model = build()
    model.blocks[1].mlp.act = nn.GELU()
    return model


def _other_epsilon() -> nn.Module:
    model = build()
    model.final_layer.norm_final.eps = 1e-5
    return model


def _tapped_later() -> nn.Module:
    model = build()
    model.encoder_depth = 3
    return model


@pytest.mark.parametrize(
    ("mutant", "quantity"),
    [(_exact_gelu, "velocity"), (_other_epsilon, "velocity"), (_tapped_later, "alignment loss")],
)
def test_a_reference_that_differs_is_noticed(mutant, quantity):
    assert quantity in failed(check(PROBLEM, mutant, reference_losses))


def test_random_draws_must_be_used_exactly_once():
    t, noise = torch.rand(2), torch.randn(2, 4, 8, 8)
    with fixed_draws(t, noise):
        assert torch.equal(torch.rand((2, 1, 1, 1)).flatten(), t)
        assert torch.randn_like(noise) is noise
    with pytest.raises(RuntimeError, match="more than once"), fixed_draws(t, noise):
        torch.rand(2)
        torch.rand(2)
    with pytest.raises(RuntimeError, match="never called torch.randn_like"), fixed_draws(t, noise):
        torch.rand(2)


def test_relative_error():
    one = torch.tensor([3.0, 4.0])
    assert relative_error(one + torch.tensor([0.0, 0.5]), one) == pytest.approx(0.1)
    nothing_to_compare = [(None, one), (one, None), (one[:1], one), (one, torch.zeros(2))]
    assert all(relative_error(*pair) == float("inf") for pair in nothing_to_compare)
    assert not Check("x", relative_error(one * float("nan"), one), 1.0).passed


def test_report_says_what_failed(capsys):
    good, bad = Check("velocity", 1e-12, 1e-9), Check("gradient blocks.3.mlp.fc1.weight", float("nan"), 1e-9)
    assert report([good], [Count("B/2", 130_303_504, 130_303_504, 130)], "title")
    assert "passed: 1 quantities" in capsys.readouterr().out
    assert not report([good, bad], [], "title")
    assert "FAILED: gradient blocks.3.mlp.fc1.weight" in capsys.readouterr().out
    for wrong in (Count("B/2", 130_303_504, 130_303_505, 130), Count("B/2", 5, 5, 130)):
        assert not report([good], [wrong], "title")
        assert "parameter counts of B/2 differ" in capsys.readouterr().out


def test_parameter_counts_are_the_published_ones():
    found = counts(lambda name: ReferenceSiT(sized(name)))
    assert [count.model for count in found] == list(PUBLISHED_MILLIONS)
    assert all(count.passed for count in found)


@pytest.fixture
def small(monkeypatch):
    """The command on a small model, under the name B/2; the parameter counts have their own test."""
    monkeypatch.setattr(parity, "sized", lambda name: CONFIG)
    monkeypatch.setattr(parity, "counts", lambda build_reference: [])


def test_command_passes_and_fails_by_exit_code(small, capsys):
    threads = str(torch.get_num_threads())
    parity.main(["--encoder-depth", "2", "--threads", threads])
    assert "parity: passed" in capsys.readouterr().out
    with pytest.raises(SystemExit) as exit_:
        parity.main(["--encoder-depth", "2", "--threads", threads, "--perturb", "0.01"])
    assert exit_.value.code == 1
    assert "parity: FAILED: velocity" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--reference", "no/such/folder"], "--reference"),
        (["--encoder-depth", "13"], "--encoder-depth"),
        (["--batch", "0"], "--batch"),
        (["--model", "XXL/2"], "XXL/2"),
    ],
)
def test_wrong_options_end_in_one_line(arguments, named, capsys):
    with pytest.raises(SystemExit) as exit_:
        parity.main(arguments)
    assert exit_.value.code == 2
    error = capsys.readouterr().err.strip()
    assert named in error and len(error.splitlines()) == 1


@pytest.mark.skipif("ERW_REFERENCE_REPO" not in os.environ, reason="ERW_REFERENCE_REPO names no checkout of REPA")
def test_fp64_agrees_with_the_published_code():
    published = load_published(os.environ["ERW_REFERENCE_REPO"], "ERW_REFERENCE_REPO")
    theirs = partial(published.model, CONFIG, **SHAPE)
    assert failed(check(PROBLEM, theirs, published.losses())) == set()
    assert "velocity" in failed(check(PROBLEM, theirs, published.losses(), perturb=0.01))
