"""DiT's DDPM and its samplers against independent computations: diffusers, torch.distributions and numerical Bayes."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from erw.errors import UserError
from erw.objectives import Ddpm
from erw.objectives.ddpm import STEPS, Schedule, discretised_log_likelihood, full_schedule, gaussian_kl, vlb
from erw.ops import REFERENCE
from erw.samplers.ddpm import ancestral_step, ddim_step, respaced

SHAPE = (2, 3, 4, 4)
POINTS = (0, 1, 2, 37, 500, 998, 999)
FULL = full_schedule(torch.device("cpu"))


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def entry(name: str, step: int) -> float:
    return float(FULL.at(name, torch.tensor([step]), torch.zeros(1, dtype=torch.float64)))


def batch_of(step: int) -> Tensor:
    return torch.full((SHAPE[0],), step)


def diffusers_scheduler(name: str, **settings):
    """A scheduler of diffusers on all 1,000 steps, its tables replaced by the same ones in fp64."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = getattr(diffusers, name)(beta_schedule="linear", clip_sample=False, **settings)
    scheduler.set_timesteps(STEPS)
    assert torch.equal(scheduler.timesteps, torch.arange(STEPS).flip(0))
    exact = torch.linspace(1e-4, 0.02, STEPS, dtype=torch.float64)
    torch.testing.assert_close(scheduler.betas.double(), exact, rtol=1e-6, atol=0.0)
    scheduler.betas, scheduler.alphas = exact, 1 - exact
    scheduler.alphas_cumprod = torch.cumprod(1 - exact, dim=0)
    scheduler.one = scheduler.final_alpha_cumprod = torch.ones((), dtype=torch.float64)
    return scheduler


@pytest.mark.parametrize("step", POINTS)
def test_an_ancestral_step_is_that_of_diffusers(step):
    scheduler = diffusers_scheduler("DDPMScheduler", variance_type="learned_range")
    x, eps, v = draw(*SHAPE), draw(*SHAPE, seed=1), draw(*SHAPE, seed=2, scale=0.5)
    prediction = torch.cat([eps, v], dim=1)
    noise = draw(*SHAPE, seed=3)
    expected = scheduler.step(prediction, step, x, generator=torch.Generator().manual_seed(3)).prev_sample
    found = ancestral_step(FULL, prediction, x, batch_of(step), noise)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("step", POINTS)
def test_a_ddim_step_is_that_of_diffusers(step, eta):
    scheduler = diffusers_scheduler("DDIMScheduler")
    x, eps, noise = draw(*SHAPE), draw(*SHAPE, seed=1), draw(*SHAPE, seed=3)
    expected = scheduler.step(eps, step, x, eta=eta, variance_noise=noise).prev_sample
    found = ddim_step(FULL, torch.cat([eps, draw(*SHAPE, seed=2)], dim=1), x, batch_of(step), noise, eta)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("step", [1, 2, 37, 500, 999])
def test_the_posterior_is_what_bayes_gives(step):
    """q(x_{t-1} | x_t, x_0) ~ q(x_t | x_{t-1}) q(x_{t-1} | x_0), its moments by quadrature."""
    x0, at = torch.tensor([0.8], dtype=torch.float64), torch.tensor([step])
    xt = FULL.noised(x0, torch.tensor([-0.7], dtype=torch.float64), at)
    keep = entry("alpha_bar", step) / entry("previous", step)
    prior_mean, prior_std = math.sqrt(entry("previous", step)) * x0, math.sqrt(1 - entry("previous", step))
    grid = prior_mean + prior_std * torch.linspace(-12, 12, 400_001, dtype=torch.float64)
    log_density = Normal(prior_mean, prior_std).log_prob(grid)
    log_density += Normal(math.sqrt(keep) * grid, math.sqrt(1 - keep)).log_prob(xt)
    weight = torch.softmax(log_density, dim=0)
    mean = (weight * grid).sum()
    variance = (weight * (grid - mean).square()).sum()
    assert FULL.posterior_mean(x0, xt, at).item() == pytest.approx(mean.item(), abs=1e-9)
    assert math.exp(entry("posterior_log_variance", step)) == pytest.approx(variance.item(), rel=1e-6)


def test_the_first_posterior_takes_the_seconds_variance_and_the_clean_datas_mean():
    assert entry("posterior_log_variance", 0) == entry("posterior_log_variance", 1)
    x0, xt = draw(*SHAPE), draw(*SHAPE, seed=1)
    torch.testing.assert_close(FULL.posterior_mean(x0, xt, batch_of(0)), x0, rtol=1e-12, atol=1e-12)


def test_the_variance_lies_between_its_bounds():
    step = torch.tensor([1, 500])
    v = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    low, high = entry("posterior_log_variance", 1), math.log(1e-4 + 500 * (0.02 - 1e-4) / 999)
    assert FULL.log_variance(v, step).tolist() == pytest.approx([low, high], rel=1e-12)


def test_noise_is_put_on_and_taken_off():
    clean, noise = draw(*SHAPE), draw(*SHAPE, seed=1)
    for step in POINTS:
        x = FULL.noised(clean, noise, batch_of(step))
        torch.testing.assert_close(FULL.clean(x, noise, batch_of(step)), clean, rtol=1e-9, atol=1e-9)


def test_kl_is_that_of_torch():
    mean, other = draw(1000), draw(1000, seed=1)
    log_variance, other_log_variance = draw(1000, seed=2), draw(1000, seed=3)
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(other, (other_log_variance / 2).exp()))
    torch.testing.assert_close(gaussian_kl(mean, log_variance, other, other_log_variance), expected, rtol=1e-12, atol=1e-12)


BINS = torch.linspace(-1, 1, 256, dtype=torch.float64)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.3, 0.2), (-0.95, 0.05), (1.4, 0.3), (0.1, 0.01)])
def test_bins_have_the_normals_probabilities_and_sum_to_one(mean, std):
    log_variance = torch.full_like(BINS, 2 * math.log(std))
    found = discretised_log_likelihood(BINS, torch.full_like(BINS, mean), log_variance).exp()
    normal = Normal(torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64))
    upper, lower = normal.cdf(BINS + 1 / 255), normal.cdf(BINS - 1 / 255)
    upper[-1], lower[0] = 1.0, 0.0
    # The tanh approximation of the CDF is good to 3e-4.
    assert (found - (upper - lower)).abs().max() < 1e-3
    assert found.sum().item() == pytest.approx(1.0, abs=1e-9)


def test_the_bound_is_the_kl_of_the_steps_and_the_decoder_at_step_0():
    """With torch's distributions, in bits a dimension."""
    step = torch.tensor([0, 500])
    clean, noise = draw(*SHAPE, scale=0.5), draw(*SHAPE, seed=1)
    eps, v = noise + draw(*SHAPE, seed=2, scale=0.1), draw(*SHAPE, seed=3, scale=0.5)
    x = FULL.noised(clean, noise, step)
    found = vlb(eps, v, x, clean, step)
    mean = FULL.posterior_mean(FULL.clean(x, eps, step), x, step)
    model = Normal(mean, (FULL.log_variance(v, step) / 2).exp())
    true_std = (FULL.at("posterior_log_variance", step, x) / 2).exp().expand_as(x)
    kl = kl_divergence(Normal(FULL.posterior_mean(clean, x, step), true_std), model)
    upper = torch.where(clean > 0.999, 1.0, model.cdf(clean + 1 / 255))
    lower = torch.where(clean < -0.999, 0.0, model.cdf(clean - 1 / 255))
    decoder = -(upper - lower).clamp(min=1e-12).log()
    bits = [decoder[0].mean().item() / math.log(2), kl[1].mean().item() / math.log(2)]
    assert found[1].item() == pytest.approx(bits[1], rel=1e-10)
    assert found[0].item() == pytest.approx(bits[0], rel=0.02)  # the CDF's approximation


@pytest.mark.parametrize("step", POINTS)
def test_the_bounds_gradient_reaches_the_variance_alone(step):
    clean, noise = draw(*SHAPE), draw(*SHAPE, seed=1)
    x = FULL.noised(clean, noise, batch_of(step))
    prediction = draw(SHAPE[0], 2 * SHAPE[1], *SHAPE[2:], seed=2, scale=0.3).requires_grad_()
    losses = Ddpm().losses(prediction, x, batch_of(step).float(), {"noise": noise, "clean": clean}, REFERENCE)
    of_bound = torch.autograd.grad(losses["vlb"].sum(), prediction, retain_graph=True)[0]
    of_error = torch.autograd.grad(losses["mse"].sum(), prediction)[0]
    channels = SHAPE[1]
    assert not of_bound[:, :channels].any() and of_bound[:, channels:].any()
    assert of_error[:, :channels].any() and not of_error[:, channels:].any()


def test_respacing_keeps_both_ends_and_never_repeats():
    for steps in (2, 3, 8, 50, 250, 999, STEPS):
        kept = respaced(steps)
        assert len(kept) == steps and kept[0] == 0 and kept[-1] == STEPS - 1
        assert (kept.diff() > 0).all()
    assert torch.equal(respaced(STEPS), torch.arange(STEPS))
    with pytest.raises(UserError, match="--sample.steps 1001"):
        respaced(STEPS + 1)


def test_a_respaced_schedule_keeps_the_noise_levels():
    kept = respaced(250)
    schedule = Schedule(kept)
    every = torch.arange(250)
    like = torch.zeros(250, dtype=torch.float64)
    torch.testing.assert_close(schedule.at("alpha_bar", every, like), FULL.at("alpha_bar", kept, like), rtol=0.0, atol=0.0)
    betas = schedule.at("log_beta", every, like).exp()
    torch.testing.assert_close(torch.cumprod(1 - betas, dim=0), FULL.at("alpha_bar", kept, like), rtol=1e-10, atol=0.0)
