"""Samplers against a Gaussian, whose velocity is known in closed form."""

from dataclasses import replace

import pytest
import torch

from erw.errors import UserError
from erw.objectives import Flow
from erw.samplers import SampleConfig, sample
from erw.samplers.flow import euler, euler_maruyama, score

MEAN, STD = 2.0, 0.5


def velocity(x, t, y):
    """E[eps - x0 | x_t] for x0 ~ N(MEAN, STD^2), x_t = (1 - t) x0 + t eps."""
    t = t.view(-1, 1, 1, 1)
    variance = (1 - t) ** 2 * STD**2 + t**2
    centred = x - (1 - t) * MEAN
    eps = t / variance * centred
    x0 = MEAN + (1 - t) * STD**2 / variance * centred
    return eps - x0


def noise(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_euler_reaches_the_data_and_its_error_falls_with_the_step():
    x = noise(20_000)
    exact = MEAN + STD * x  # the flow of a Gaussian is affine
    errors = [
        (euler(velocity, x, x[:, 0, 0, 0], SampleConfig(sampler="ode", steps=steps), Flow(), None) - exact).abs().mean()
        for steps in (50, 100, 200)
    ]
    assert errors[2] < 0.01
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.15) and errors[1] / errors[2] == pytest.approx(2, rel=0.15)


def test_euler_maruyama_has_the_datas_moments():
    x = noise(20_000)
    generator = torch.Generator().manual_seed(1)
    draws = lambda i: torch.randn(x.shape, dtype=x.dtype, generator=generator)  # noqa: E731
    out = euler_maruyama(velocity, x, x[:, 0, 0, 0], SampleConfig(), Flow(), draws)
    assert out.mean() == pytest.approx(MEAN, abs=0.02) and out.std() == pytest.approx(STD, abs=0.02)


def test_score_from_velocity_is_the_gaussians():
    t = torch.tensor(0.3, dtype=torch.float64)
    x = noise(10)
    variance = (1 - t) ** 2 * STD**2 + t**2
    expected = -(x - (1 - t) * MEAN) / variance
    assert torch.allclose(score(velocity(x, t.expand(10), None), x, t), expected)


def labelled(x, t, y):
    """A field that tells what it was asked: label 1 gives 1, the null class 9 gives 0.25."""
    return torch.where(y == 9, 0.25, 1.0).view(-1, 1, 1, 1) * torch.ones_like(x)


@pytest.mark.parametrize(("low", "high", "expected"), [(0.0, 1.0, 2.5), (0.5, 1.0, 0.5 * 2.5 + 0.5 * 1.0), (2.0, 3.0, 1.0)])
def test_guidance_acts_within_its_interval(low, high, expected):
    # Guided velocity 0.25 + 3 (1 - 0.25) = 2.5; over unit time the state falls by the mean velocity.
    config = SampleConfig(sampler="ode", steps=100, guidance=3.0, guidance_low=low, guidance_high=high)
    y = torch.ones(3, dtype=torch.long)
    common = {"seed": 0, "index": torch.arange(3), "y": y, "shape": (1, 1, 1), "null": 9}
    start = sample(lambda x, t, y: torch.zeros_like(x), replace(config, guidance=1.0), Flow(), **common)
    end = sample(labelled, config, Flow(), **common)
    assert torch.allclose(start - end, torch.full_like(start, expected), atol=0.03)


@pytest.mark.parametrize("sampler", ["ode", "sde"])
def test_an_image_depends_on_its_number_not_on_its_batch(sampler):
    config = SampleConfig(sampler=sampler, steps=8)
    y = torch.zeros(6, dtype=torch.long)
    whole = sample(velocity, config, Flow(), seed=3, index=torch.arange(6), y=y, shape=(1, 4, 4), null=1)
    part = sample(velocity, config, Flow(), seed=3, index=torch.arange(4, 6), y=y[:2], shape=(1, 4, 4), null=1)
    assert torch.equal(whole[4:], part)
    other = sample(velocity, config, Flow(), seed=4, index=torch.arange(6), y=y, shape=(1, 4, 4), null=1)
    assert not torch.equal(whole, other)


def test_impossible_settings_are_refused():
    with pytest.raises(UserError, match="at least 2"):
        SampleConfig(steps=1)
    with pytest.raises(UserError, match="between 0 and 1"):
        SampleConfig(last_step=1.5)
