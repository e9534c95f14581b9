"""Samplers against Gaussian mixtures, whose velocity, score and noise are known in closed form."""

from typing import get_args, get_type_hints

import pytest
import torch

from erw.errors import UserError
from erw.objectives import Ddpm, Flow
from erw.samplers import SAMPLERS, SampleConfig, sample
from erw.samplers.flow import half_diffusion, score
from erw.samplers.guidance import guided
from mixture import Mixture, interpolant

KINDS = ("linear", "cosine")
FORMS = get_args(get_type_hints(SampleConfig)["diffusion"])
PLANE = Mixture.of([0.5, 0.3, 0.2], [[1.5, 0.0], [-1.0, 1.2], [-0.6, -1.4]], [[0.4, 0.3], [0.3, 0.5], [0.5, 0.35]])
LINE = Mixture.of([0.6, 0.4], [[1.2], [-0.8]], [[0.5], [0.3]])
BELL = Mixture.of([1.0], [[2.0]], [[0.5]])


def config(sampler: str, **settings) -> SampleConfig:
    if sampler == "dopri5":
        pytest.importorskip("torchdiffeq")
    return SampleConfig(sampler=sampler, **settings)


# ---- samples of a mixture ---------------------------------------------------------------------------------------------


def assert_moments(network, settings: SampleConfig, objective, bias: float, images: int = 512) -> None:
    """Mean, covariance and component weights, within 4.5 standard errors and ``bias``, which is the discretisation's."""
    index = torch.arange(images)  # eight points in each image
    x = sample(network, settings, objective, seed=0, index=index, y=torch.zeros_like(index), shape=(1, 8, 2), null=1)
    rows, expected = PLANE.moments(x)
    error = rows.std(dim=0) / len(rows) ** 0.5
    gap = (rows.mean(dim=0) - expected).abs()
    assert (gap < 4.5 * error + bias).all(), f"gaps {gap.tolist()}, standard errors {error.tolist()}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("sampler", "steps", "bias"), [("ode", 100, 0.03), ("heun", 20, 0.01), ("dopri5", 2, 0.0)])
def test_deterministic_flow_samplers_give_the_mixture(sampler, steps, bias, kind):
    assert_moments(PLANE.velocity(kind), config(sampler, steps=steps), Flow(interpolant=kind), bias, images=1024)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_the_sde_gives_the_mixture_with_every_form_of_diffusion(form, kind):
    settings = config("sde", diffusion=form, steps=100, last_step=0.01)
    assert_moments(PLANE.velocity(kind), settings, Flow(interpolant=kind), bias=0.02)


def test_the_papers_protocol_gives_the_mixture():
    assert_moments(PLANE.velocity("linear"), SampleConfig(), Flow(), bias=0.015)


@pytest.mark.parametrize(("steps", "v", "images"), [(250, -1.0, 512), (250, 1.0, 512), (1000, 0.0, 128)])
def test_the_ddpm_chain_gives_the_mixture_with_either_variance(steps, v, images):
    assert_moments(PLANE.noise(v), config("ddpm", steps=steps), Ddpm(), bias=0.02, images=images)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_gives_the_mixture_with_and_without_noise(eta):
    # v is the ancestral sampler's: a nonsensical one must not matter.
    assert_moments(PLANE.noise(30.0), config("ddim", steps=250, eta=eta), Ddpm(), bias=0.02)


# ---- errors without sampling noise ------------------------------------------------------------------------------------


def flow_error(sampler: str, kind: str, **settings) -> float:
    """Mean distance from where the exact flow takes evenly spread quantiles of the noise."""
    start = torch.special.ndtri(torch.linspace(0.002, 0.998, 200, dtype=torch.float64)).view(-1, 1, 1, 1)
    end = SAMPLERS[sampler](LINE.velocity(kind), start, None, config(sampler, **settings), Flow(interpolant=kind), None)
    return float((end - LINE.flowed(start)).abs().mean())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("sampler", "order"), [("ode", 1), ("heun", 2)])
def test_errors_fall_at_the_solvers_order(sampler, order, kind):
    errors = [flow_error(sampler, kind, steps=steps) for steps in (50, 100, 200)]
    assert errors[2] < 0.01
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.15)
    assert errors[1] / errors[2] == pytest.approx(2**order, rel=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_dopri5_keeps_its_tolerance(kind):
    errors = {tolerance: flow_error("dopri5", kind, tolerance=tolerance) for tolerance in (1e-3, 1e-5, 1e-7)}
    assert all(error < 20 * tolerance for tolerance, error in errors.items()), errors
    assert errors[1e-3] > 10 * errors[1e-5] > 100 * errors[1e-7]


def exact_moments(network, settings: SampleConfig, objective) -> tuple[float, float]:
    """Mean and variance of the samples of one Gaussian, without sampling: the sampler is then affine in its draws, so
    that each row's lone draw shows what it adds."""
    x = torch.zeros(settings.steps + 2, 1, 1, 1, dtype=torch.float64)
    x[1] = 1

    def noise(step: int) -> torch.Tensor:
        return torch.zeros_like(x).index_fill_(0, torch.tensor([2 + step]), 1.0)

    out = SAMPLERS[settings.sampler](network, x, None, settings, objective, noise).flatten()
    return float(out[0]), float((out[1:] - out[0]).square().sum())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", [form for form in FORMS if form != "sbdm"])  # which starts a fixed gap below t = 1
def test_euler_maruyama_is_of_first_order_in_the_second_moment(form, kind):
    errors = []
    for steps in (50, 100, 200):
        settings = config("sde", diffusion=form, steps=steps, last_step=1 / steps)
        mean, variance = exact_moments(BELL.velocity(kind), settings, Flow(interpolant=kind))
        errors.append(abs(mean**2 + variance - 4.25))
    assert errors[2] < 0.025
    assert errors[0] / errors[1] > 1.9 and errors[1] / errors[2] > 1.9  # more, where the first order cancels


@pytest.mark.parametrize("kind", KINDS)
def test_the_sde_that_starts_below_noise_has_a_gaussians_moments(kind):
    settings = config("sde", diffusion="sbdm", steps=400, last_step=1 / 400)
    mean, variance = exact_moments(BELL.velocity(kind), settings, Flow(interpolant=kind))
    assert mean == pytest.approx(2, abs=0.004) and variance == pytest.approx(0.25, abs=0.002)


@pytest.mark.parametrize(
    ("sampler", "v", "eta"), [("ddpm", -1.0, 0.0), ("ddpm", 1.0, 0.0), ("ddim", 0.0, 0.0), ("ddim", 0.0, 1.0)]
)
def test_ddpm_samplers_approach_a_gaussians_moments(sampler, v, eta):
    moments = [exact_moments(BELL.noise(v), config(sampler, steps=steps, eta=eta), Ddpm()) for steps in (125, 500)]
    # DDIM does not forget that its start lacks the 0.6% of data in x_999.
    assert all(mean == pytest.approx(2, abs=1e-3 if (sampler, eta) != ("ddim", 0.0) else 0.01) for mean, _ in moments)
    coarse, fine = (abs(variance - 0.25) for _, variance in moments)
    assert coarse < 0.03 and coarse / fine > 3.3  # first order: 4


@pytest.mark.parametrize(("sampler", "eta"), [("ddpm", 0.0), ("ddim", 0.0), ("ddim", 1.0)])
def test_the_last_step_of_a_ddpm_takes_off_all_noise(sampler, eta):
    needle = Mixture.of([1.0], [[2.0]], [[0.001]])  # a tenth of the noise at the first of the 1,000 steps
    _, variance = exact_moments(needle.noise(-1.0), config(sampler, steps=50, eta=eta), Ddpm())
    assert variance < 4e-6


# ---- the pieces of the SDE --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("t", [0.05, 0.5, 0.95])
def test_score_from_velocity_is_the_log_densitys_gradient(t, kind):
    t = torch.tensor(t, dtype=torch.float64)
    x = torch.randn(20, 1, 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (expected,) = torch.autograd.grad(PLANE.log_density(x, *interpolant(kind, t)[:2]).sum(), x)
    torch.testing.assert_close(score(PLANE.velocity(kind)(x, t.expand(20), None), x, t, kind), expected)


# At t = 0.25, with factor 1 and with factor 2.
LINEAR = {"constant": (1, 2), "sigma": (0.25, 0.5), "sbdm": (1 / 3, 2 / 3), "linear": (0.25, 0.5),
          "decreasing": (0.0214466, 0.0428932), "increasing-decreasing": (0.5, 1.0)}  # fmt: skip
COSINE = LINEAR | {"sigma": (0.3826834, 0.7653669), "sbdm": (0.6506451, 1.3012903)}


@pytest.mark.parametrize(("kind", "known"), [("linear", LINEAR), ("cosine", COSINE)])
@pytest.mark.parametrize("form", FORMS)
def test_forms_of_diffusion_have_their_known_values_and_are_positive(form, kind, known):
    for norm, value in zip((1.0, 2.0), known[form], strict=True):
        settings = SampleConfig(diffusion=form, diffusion_norm=norm)
        assert float(half_diffusion(settings, kind, torch.tensor(0.25, dtype=torch.float64))) == pytest.approx(value)
    times = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    assert all(half_diffusion(SampleConfig(diffusion=form), kind, t) > 0 for t in times)


# ---- what all samplers share ------------------------------------------------------------------------------------------

OBJECTIVE = {name: objective for objective in (Flow(), Ddpm()) for name in objective.samplers}


def test_every_sampler_belongs_to_an_objective_and_no_other_takes_it():
    assert OBJECTIVE.keys() == SAMPLERS.keys()
    for name, owner in OBJECTIVE.items():
        for objective in (Flow(), Ddpm()):
            if objective != owner:
                with pytest.raises(UserError, match=f"{name} does not fit --objective.name {objective.name}: choose one of"):
                    sample(None, SampleConfig(sampler=name), objective, seed=0, index=torch.arange(2), y=None,
                           shape=(1, 2, 2), null=1)  # fmt: skip


def plain(x, t, y):
    """A field of sums and products alone, which round alike in any batch; for a DDPM as well."""
    slope = 0.1 + 0.2 * y.view(-1, 1, 1, 1)
    return torch.cat([slope * x, 0 * x], dim=1)


def pictures(sampler: str, low: int, high: int, seed: int = 3) -> torch.Tensor:
    index = torch.arange(low, high)
    settings = config(sampler, steps=8, eta=1.0)
    return sample(plain, settings, OBJECTIVE[sampler], seed=seed, index=index, y=index % 3, shape=(1, 4, 4), null=9)


@pytest.mark.parametrize("sampler", sorted(set(SAMPLERS) - {"dopri5"}))
def test_an_image_depends_on_its_number_not_on_its_batch(sampler):
    whole = pictures(sampler, 0, 6)
    assert torch.equal(whole[4:], pictures(sampler, 4, 6))
    assert not torch.equal(whole, pictures(sampler, 0, 6, seed=4))
    assert len({float(image.mean()) for image in whole}) == 6


def test_dopri5_depends_on_the_batch_within_its_tolerance():
    torch.testing.assert_close(pictures("dopri5", 0, 6)[4:], pictures("dopri5", 4, 6), rtol=0, atol=1e-6)


def test_impossible_settings_are_refused():
    for settings, says in [({"steps": 1}, "at least 2"), ({"last_step": 1.5}, "between 0 and 1"),
                           ({"guidance_channels": -1}, "0 .all. or more"), ({"diffusion_norm": 0.0}, "above 0"),
                           ({"tolerance": 0.0}, "above 0"), ({"eta": 1.5}, "0..1")]:  # fmt: skip
        with pytest.raises(UserError, match=says):
            SampleConfig(**settings)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_a_ddpm_has_no_more_than_its_steps(sampler):
    with pytest.raises(UserError, match="--sample.steps 1001: this objective has 1000"):
        SampleConfig(sampler=sampler, steps=1001).check(Ddpm())
    SampleConfig(sampler=sampler, steps=1000).check(Ddpm())


# ---- guidance ---------------------------------------------------------------------------------------------------------


def labelled(x, t, y):
    """A field that tells what it was asked: label 1 gives 1, the null class 9 gives 0.25."""
    return torch.where(y == 9, 0.25, 1.0).view(-1, 1, 1, 1).expand(-1, 6, 2, 2)


@pytest.mark.parametrize(("channels", "guided_channels"), [(0, 3), (2, 2), (3, 3), (5, 3)])
def test_guidance_mixes_the_first_channels_and_never_the_variance(channels, guided_channels):
    network = guided(labelled, SampleConfig(guidance=3.0, guidance_channels=channels), null=9, channels=3, time_scale=1.0)
    x, y = torch.zeros(4, 3, 2, 2), torch.ones(4, dtype=torch.long)
    expected = torch.tensor([2.5] * guided_channels + [1.0] * (6 - guided_channels))  # 0.25 + 3 (1 - 0.25), or the label's
    assert torch.equal(network(x, torch.ones(4), y), expected.view(-1, 1, 1).expand(4, 6, 2, 2))


@pytest.mark.parametrize(("low", "high", "expected"), [(0.0, 1.0, 2.5), (0.5, 1.0, 0.5 * 2.5 + 0.5 * 1.0), (2.0, 3.0, 1.0)])
def test_guidance_acts_within_its_interval(low, high, expected):
    # Over unit time the state falls by the mean velocity.
    y = torch.ones(3, dtype=torch.long)
    common = {"seed": 0, "index": torch.arange(3), "y": y, "shape": (3, 2, 2), "null": 9}
    settings = SampleConfig(sampler="ode", steps=100, guidance=3.0, guidance_low=low, guidance_high=high)
    start = sample(lambda x, t, y: torch.zeros_like(x), SampleConfig(sampler="ode", steps=2), Flow(), **common)
    end = sample(labelled, settings, Flow(), **common)
    assert torch.allclose(start - end, torch.full_like(start, expected), atol=0.03)


@pytest.mark.parametrize("sampler", sorted(set(SAMPLERS) - {"dopri5"}))
def test_the_interval_counts_t_from_0_to_1_whatever_the_objective_counts(sampler):
    asked = {}

    def network(x, t, y):
        asked[float(t[0])] = len(x)
        return plain(x, t, y)

    settings = config(sampler, steps=50, guidance=2.0, guidance_low=0.25, guidance_high=0.75)
    index = torch.arange(3)
    sample(network, settings, OBJECTIVE[sampler], seed=0, index=index, y=index, shape=(1, 2, 2), null=9)
    last = 999.0 if sampler in ("ddpm", "ddim") else 1.0
    assert max(asked) == last and min(asked) < 0.05 * last
    scale = 1000.0 if sampler in ("ddpm", "ddim") else 1.0
    twice = {t for t, images in asked.items() if images == 6}
    assert twice == {t for t in asked if 0.25 * scale <= t <= 0.75 * scale} and len(twice) > 20
