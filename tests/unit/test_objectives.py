"""Objectives: what the network sees, and what it is compared with."""

from dataclasses import replace

import pytest
import torch

from erw import rng
from erw.build import build_step
from erw.errors import UserError
from erw.models.sit import SiTConfig
from erw.objectives import Ddpm, Flow
from erw.objectives.flow import coefficients, interpolate
from erw.ops import REFERENCE
from erw.rng import Purpose
from erw.types import Phase
from mixture import alpha_bars, interpolant
from tiny import METHODS, random_step_inputs, tiny

KINDS = ("linear", "cosine")
TRAIN = Phase(name="train")
OBJECTIVES = [Flow(), Flow(interpolant="cosine", time="lognormal"), Ddpm()]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def distance(draws: torch.Tensor, cdf: torch.Tensor) -> float:
    """Kolmogorov's between draws and the distribution whose CDF they have there, in units of 1 / sqrt(n)."""
    order = draws.argsort()
    count = len(draws)
    return float((cdf[order] - (torch.arange(count) + 0.5) / count).abs().max()) * count**0.5


KOLMOGOROV = 1.95  # exceeded by chance once in a thousand


# ---- flow -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_interpolant_ends_at_data_and_noise(kind):
    x, noise = normal(2, 1, 4, 4), normal(2, 1, 4, 4, seed=1)
    at_data, _ = interpolate(x, noise, torch.zeros(2, dtype=torch.float64), kind)
    at_noise, _ = interpolate(x, noise, torch.ones(2, dtype=torch.float64), kind)
    torch.testing.assert_close(at_data, x)
    torch.testing.assert_close(at_noise, noise)


def test_the_linear_interpolants_ends_are_exact_and_its_target_is_the_difference():
    x, noise = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
    at_data, target = interpolate(x, noise, torch.zeros(2))
    at_noise, _ = interpolate(x, noise, torch.ones(2))
    assert torch.equal(at_data, x) and torch.equal(at_noise, noise) and torch.equal(target, noise - x)


@pytest.mark.parametrize("kind", KINDS)
def test_the_velocity_target_is_the_paths_derivative(kind):
    x, noise = normal(5, 2, 3, 3), normal(5, 2, 3, 3, seed=1)
    t = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0], dtype=torch.float64)
    rise = interpolate(x, noise, t + 1e-5, kind)[0] - interpolate(x, noise, t - 1e-5, kind)[0]
    torch.testing.assert_close(interpolate(x, noise, t, kind)[1], rise / 2e-5, rtol=1e-7, atol=1e-7)


def test_the_cosine_interpolant_keeps_variance_and_the_linear_one_the_sum():
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    alpha, sigma, *_ = coefficients("cosine", t)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t))
    alpha, sigma, *_ = coefficients("linear", t)
    torch.testing.assert_close(alpha + sigma, torch.ones_like(t))
    for kind in KINDS:
        torch.testing.assert_close(coefficients(kind, t), interpolant(kind, t))


@pytest.mark.parametrize("kind", KINDS)
def test_lognormal_times_make_the_noise_to_signal_ratio_lognormal(kind):
    t = Flow(interpolant=kind, time="lognormal").times(3, torch.arange(20_000)).double()
    assert t.min() > 0 and t.max() < 1
    alpha, sigma, *_ = interpolant(kind, t)
    logarithm = (sigma / alpha).log()
    assert abs(logarithm.mean()) < 4 / 20_000**0.5 and logarithm.var() == pytest.approx(1, abs=4 * (2 / 20_000) ** 0.5)
    assert distance(logarithm, torch.special.ndtr(logarithm)) < KOLMOGOROV


@pytest.mark.parametrize("kind", KINDS)
def test_uniform_times_are_uniform(kind):
    t = Flow(interpolant=kind).times(3, torch.arange(20_000)).double()
    assert distance(t, t) < KOLMOGOROV


@pytest.mark.parametrize("objective", OBJECTIVES[:2], ids=["linear", "cosine"])
def test_a_flows_input_is_the_interpolation_at_the_t_that_the_network_sees(objective):
    x, index = normal(6, 2, 4, 4).float(), torch.arange(10, 16)
    drawn = objective.draw(TRAIN, 3, x, index, index, null=99)
    noise = rng.normal(3, index, Purpose.NOISE, (2, 4, 4))
    expected, velocity = interpolate(x, noise, drawn.t, objective.interpolant)
    assert torch.equal(drawn.x, expected) and torch.equal(drawn.target["velocity"], velocity)
    assert drawn.t.unique().numel() == 6


def test_a_flow_has_no_use_for_the_second_half_of_the_channels():
    prediction = torch.randn(3, 4, 5, 5, requires_grad=True)
    x, target = torch.randn(3, 2, 5, 5), {"velocity": torch.randn(3, 2, 5, 5)}
    losses = Flow().losses(prediction, x, torch.rand(3), target, REFERENCE)["velocity"]
    torch.testing.assert_close(losses, (prediction[:, :2] - target["velocity"]).square().mean(dim=(1, 2, 3)))
    losses.sum().backward()
    assert prediction.grad[:, 2:].abs().max() == 0 and prediction.grad[:, :2].abs().min() > 0


def test_a_flows_network_with_learn_sigma_gets_no_gradient_for_it(tmp_path):
    config = tiny("sit", tmp_path, model={"learn_sigma": True})
    step = build_step(config, TRAIN)
    torch.nn.init.normal_(step.model.final_layer.linear.weight, std=0.1)
    step(*random_step_inputs(config, TRAIN))["loss"].backward()
    gradient = step.model.final_layer.linear.weight.grad.unflatten(0, (-1, config.model.out_channels))
    assert gradient[:, 1:].abs().max() == 0 and gradient[:, :1].abs().amax(dim=-1).min() > 0


# ---- DDPM: what it draws (its losses are elsewhere) -------------------------------------------------------------------


def test_ddpm_steps_are_uniform_whole_numbers_from_0_to_999():
    count = 100_000
    _, t, _ = Ddpm().corrupt(1, torch.zeros(count, 1, 1, 1), torch.arange(count))
    assert torch.equal(t, t.long().float()) and t.min() == 0 and t.max() == 999
    hits = torch.bincount(t.long(), minlength=1000).double()
    chi_squared = ((hits - count / 1000).square() / (count / 1000)).sum()
    assert abs(chi_squared - 999) < 4 * (2 * 999) ** 0.5


@pytest.mark.parametrize(("draw", "step"), [(0.0, 0.0), (0.4995, 499.0), (1.0, 999.0)])
def test_a_ddpm_step_stays_in_range_even_where_the_draw_rounds_up_to_one(draw, step, monkeypatch):
    monkeypatch.setattr(rng, "uniform", lambda seed, index, purpose: torch.full(index.shape, draw))
    x, t, _ = Ddpm().corrupt(1, torch.zeros(2, 1, 1, 1), torch.arange(2))
    assert t.tolist() == [step, step] and x.isfinite().all()


def test_a_ddpms_input_has_the_schedules_mean_and_variance():
    count, value = 20_000, 3.0
    x, t, target = Ddpm().corrupt(2, torch.full((count, 1, 2, 2), value), torch.arange(count))
    kept = alpha_bars()[t.long()].view(-1, 1, 1, 1)
    noise = (x.double() - kept.sqrt() * value) / (1 - kept).sqrt()
    for part in noise.flatten(1)[t.argsort()].chunk(10):  # from the least noisy tenth to the most
        size = part.numel()
        assert abs(part.mean()) < 4 / size**0.5 and part.var() == pytest.approx(1, abs=4 * (2 / size) ** 0.5)
    # Rounding of x is divided by the noise's standard deviation, 0.01 at the first step.
    assert (noise - target["noise"]).abs().max() < 1e-4
    assert torch.equal(target["clean"], torch.full_like(x, value))


# ---- both -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES, ids=["linear", "cosine", "ddpm"])
@pytest.mark.parametrize("phase", [TRAIN, METHODS["erw"].phase(0)], ids=["denoise", "warmup"])
def test_draws_do_not_depend_on_the_split_into_micro_batches(objective, phase):
    index = torch.arange(100, 160)
    x, labels = normal(60, 2, 3, 3).float(), torch.arange(60) % 7
    objective = replace(objective, label_dropout=0.3)
    whole = objective.draw(phase, 5, x, labels, index, null=10)
    for size in (1, 7, 32):
        parts = [objective.draw(phase, 5, *cut, null=10) for cut in zip(*(a.split(size) for a in (x, labels, index)),
                                                                        strict=True)]  # fmt: skip
        for name in ("x", "t", "y"):
            assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts]))
        for name in whole.target or ():
            assert torch.equal(whole.target[name], torch.cat([part.target[name] for part in parts]))
    other = objective.draw(TRAIN, 6, x, labels, index, null=10)
    assert not torch.equal(other.x, whole.x) and not torch.equal(other.t, whole.t) and not torch.equal(other.y, whole.y)


def test_labels_are_dropped_at_their_share():
    index = torch.arange(4000)
    drawn = Flow(label_dropout=0.1).draw(TRAIN, 5, torch.zeros(4000, 1, 2, 2), torch.zeros_like(index), index, null=10)
    assert abs((drawn.y == 10).float().mean() - 0.1) < 0.02


@pytest.mark.parametrize("objective", OBJECTIVES, ids=["linear", "cosine", "ddpm"])
def test_warmup_sees_clean_latents_at_time_zero(objective):
    x, index = torch.randn(6, 1, 8, 8), torch.arange(6)
    inputs = replace(objective, label_dropout=0.0).draw(METHODS["erw"].phase(0), 0, x, index, index, null=10)
    assert torch.equal(inputs.x, x) and inputs.t.abs().sum() == 0 and inputs.target is None
    assert inputs.t.dtype == torch.float32 and torch.equal(inputs.y, index)


def test_a_ddpm_needs_a_network_that_learns_its_variance():
    with pytest.raises(UserError, match="needs --model.learn_sigma true"):
        Ddpm().check(SiTConfig())
    Ddpm().check(SiTConfig(learn_sigma=True))
    Flow().check(SiTConfig())
