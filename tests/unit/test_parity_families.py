"""`erw.bench.parity_dit` and `parity_sit` pass where both sides compute the same and fail where they do not.

Without a checkout the published side is a stand-in made of our own code: it computes first, then ours is changed.
"""

import os
from argparse import Namespace
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from erw.bench import _parity_samplers, parity, parity_dit, parity_sit
from erw.bench._parity import LIMITS, compare, handed_draws
from erw.bench._parity_report import Check, counts
from erw.bench._parity_samplers import STEPS, TRAINING, Run, _checks, dit_checks, repa_checks, sit_checks
from erw.bench.published import DIT as DIT_REPO
from erw.bench.published import REPA as REPA_REPO
from erw.bench.published import SIT as SIT_REPO
from erw.bench.published import load_dit, load_published, load_repa_samplers, load_sit
from erw.bench.reference import ReferenceSiT
from erw.models.sit import SiT, SiTConfig, sized
from erw.objectives import Ddpm, ddpm, flow
from erw.objectives.ddpm import Schedule, full_schedule, vlb
from erw.objectives.flow import interpolate
from erw.samplers import SampleConfig
from erw.samplers.ddpm import ancestral_step, ddim_step, respaced
from erw.samplers.flow import half_diffusion, score
from erw.samplers.guidance import guided

CONFIG = SiTConfig(depth=3, width=64, num_heads=4, input_size=8, num_classes=10, learn_sigma=True)
DIT, SIT = parity_dit.Problem(config=CONFIG), parity_sit.Problem(config=CONFIG)


def failed(checks: list[Check]) -> set[str]:
    return {check.quantity for check in checks if not check.passed}


def groups(quantities: set[str]) -> set[str]:
    return {quantity.split(",")[0] for quantity in quantities if not quantity.startswith("gradient ")}


class Guided(SiT):
    """Our network behind the published interface."""

    def __init__(self, config: SiTConfig, keep: int):
        super().__init__(config)
        self.keep = keep

    def forward(self, x, t, y):
        return super().forward(x, t, y).prediction[:, : self.keep]

    def forward_with_cfg(self, x, t, y, cfg_scale):
        label, free = self(x, t, y).chunk(2)
        mixed = free[:, :3] + cfg_scale * (label[:, :3] - free[:, :3])
        return torch.cat([mixed, label[:, 3:]], dim=1).repeat(2, 1, 1, 1)


class Process:
    """Our DDPM behind the published interface."""

    def __init__(self, steps: int | None):
        self.schedule = full_schedule(torch.device("cpu")) if steps is None else Schedule(respaced(steps))

    def training_losses(self, model, clean, t, model_kwargs, noise):
        x = self.schedule.noised(clean, noise, t)
        eps, v = model(x, t, **model_kwargs).chunk(2, dim=1)
        mse, bound = (eps - noise).square().mean(dim=(1, 2, 3)), vlb(eps.detach(), v, x, clean, t)
        return {"mse": mse, "vb": bound, "loss": mse + bound}

    def _common(self, model, x, position, model_kwargs):
        t = self.schedule.at("timesteps", position, x).flatten()
        return self.schedule, model(x, t, **model_kwargs), x, position, torch.randn_like(x)

    def p_sample(self, model, x, position, clip_denoised, model_kwargs):
        return {"sample": ancestral_step(*self._common(model, x, position, model_kwargs))}

    def ddim_sample(self, model, x, position, clip_denoised, model_kwargs, eta):
        return {"sample": ddim_step(*self._common(model, x, position, model_kwargs), eta)}


class StandInDit:
    """In place of `PublishedDit`."""

    def model(self, config, name=None):
        return Guided(config, 2 * config.in_channels)

    def process(self, steps=None):
        return Process(steps)

    def tables_in(self, dtype):
        return nullcontext()


class StandInSit:
    """In place of `PublishedSit`: time runs from noise to data."""

    def model(self, config, name=None):
        return Guided(config, config.in_channels)

    def path(self, kind):
        def training_losses(model, latents, model_kwargs):
            t, noise = torch.rand((len(latents),)), torch.randn_like(latents)
            x, velocity = interpolate(latents, noise, 1 - t, kind)
            return {"loss": (model(x, t, **model_kwargs) + velocity).square().mean(dim=(1, 2, 3))}

        return SimpleNamespace(training_losses=training_losses)

    def sde(self, kind, form, norm):
        config = SampleConfig(diffusion=form, diffusion_norm=norm)

        def diffusion(x, t):
            return half_diffusion(config, kind, 1 - t)

        def drift(x, t, model):
            return model(x, t) + diffusion(x, t)[0] * score(-model(x, t), x, 1 - t[0], kind)

        return drift, diffusion


@pytest.fixture(scope="module")
def dit():
    """What the stand-in computes, and the names of its weights."""
    return parity_dit.run_reference(DIT, StandInDit()), StandInDit().model(CONFIG)


@pytest.fixture(scope="module")
def sit():
    return parity_sit.run_reference(SIT, StandInSit()), StandInSit().model(CONFIG)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("module", "problem", "published"), [(parity_dit, DIT, StandInDit()), (parity_sit, SIT, StandInSit())])
def test_the_same_passes_and_a_changed_weight_fails(module, problem, published, dtype):
    problem = replace(problem, dtype=dtype)
    assert failed(module.check(problem, published)) == set()
    assert {"network output", "guided output"} <= failed(module.check(problem, published, perturb=0.01))


def test_every_parameters_gradient_is_compared(dit, sit):
    names = {name for name, p in SiT(CONFIG).named_parameters() if p.requires_grad}
    assert dit[0].gradients.keys() == names
    assert sit[0].gradients.keys() == {f"{name}, {kind}" for name in names for kind in ("linear", "cosine")}


def scaled_bound(*given):
    return 1.0001 * vlb(*given)


def flat_likelihood(x, mean, log_variance):
    """Without the outermost bins' reach to infinity."""
    inverse = torch.exp(-0.5 * log_variance)
    upper, lower = ddpm._normal_cdf(inverse * (x - mean + 1 / 255)), ddpm._normal_cdf(inverse * (x - mean - 1 / 255))
    return (upper - lower).clamp(min=1e-12).log()


def attached_losses(self, prediction, x, t, target, ops):
    eps, v = prediction.chunk(2, dim=1)
    return {"mse": ops.velocity_mse(eps, target["noise"]), "vlb": vlb(eps, v, x, target["clean"], t.long())}


def swapped_bounds(self, v, step):
    low, high = self.at("log_beta", step, v), self.at("posterior_log_variance", step, v)
    return (v + 1) / 2 * high + (1 - v) / 2 * low


def guide_everything(network, config, *rest):
    return guided(network, replace(config, guidance_channels=0), *rest)


BOUNDS = {"vlb, t 0", "vlb, t 1", "vlb, t 500", "vlb, t 999"}


@pytest.mark.parametrize(
    ("where", "name", "wrong", "noticed", "untouched"),
    [
        (ddpm, "vlb", scaled_bound, BOUNDS | {"loss gradient of variance"}, {"mse, t 0", "ancestral step, position 0"}),
        (ddpm, "discretised_log_likelihood", flat_likelihood, {"vlb, t 0"}, BOUNDS - {"vlb, t 0"}),
        (Ddpm, "losses", attached_losses, {"loss gradient of noise, t 1"}, BOUNDS | {"loss gradient of variance"}),
        (Schedule, "log_variance", swapped_bounds, BOUNDS | {"ancestral step, position 249"}, {"mse, t 999"}),
        (parity_dit, "respaced", lambda steps: torch.arange(2, 1000, 4), {"ancestral step, position 1"}, BOUNDS),
        (parity_dit, "ddim_step", lambda *given: ddim_step(*given[:-1], 0.4), {"DDIM step eta 0.5, position 124"}, BOUNDS),
        (parity_dit, "guided", guide_everything, {"guided output"}, {"network output"}),
    ],
    ids=["bound", "decoder", "detach", "variance", "respacing", "eta", "guided channels"],
)
def test_a_wrong_ddpm_is_noticed(dit, monkeypatch, where, name, wrong, noticed, untouched):
    monkeypatch.setattr(where, name, wrong)
    found = failed(compare(parity_dit.run_ours(DIT, dit[1]), dit[0], LIMITS[DIT.dtype]))
    assert noticed <= found
    assert not untouched & found


def wrong_coefficients(kind, t):
    alpha, sigma, d_alpha, d_sigma = right_coefficients(kind, t)
    return alpha, sigma, d_alpha, d_sigma * (1.001 if kind == "cosine" else 1)


right_coefficients = flow.coefficients


@pytest.mark.parametrize(
    ("where", "name", "wrong", "noticed"),
    [
        (flow, "coefficients", wrong_coefficients, {"velocity loss"}),
        (parity_sit, "half_diffusion", lambda *given: 1.001 * half_diffusion(*given), {"SDE diffusion", "SDE drift"}),
        (parity_sit, "score", lambda *given: 1.001 * score(*given), {"SDE drift"}),
        (parity_sit, "GUIDANCE", 4.001, {"guided output"}),
    ],
    ids=["interpolant", "diffusion", "score", "guidance"],
)
def test_a_wrong_flow_is_noticed(sit, monkeypatch, where, name, wrong, noticed):
    monkeypatch.setattr(where, name, wrong)
    found = failed(compare(parity_sit.run_ours(SIT, sit[1]), sit[0], LIMITS[SIT.dtype]))
    assert groups(found) == noticed
    assert not any("velocity loss, linear" in quantity for quantity in found)


def euler_of(model, given):
    """REPA's convention and loop, a rendering of our own."""
    x = given.start.double()
    for step in range(STEPS):
        t = torch.full((len(x),), 1 - step / STEPS)
        x = x - model(x.float(), t, given.labels)[0].double() / STEPS
    return x


def sampled(perturb: float = 0.0) -> list[Check]:
    run = Run(name="sampled by ode", case="", settings={"sampler": "ode"}, theirs=euler_of)
    options = Namespace(path_type="linear", prediction="v")
    small = replace(_parity_samplers.CONFIG, depth=2)

    def build() -> nn.Module:
        return ReferenceSiT(small, encoder_depth=1, feature_width=8)

    return _checks("repa", build, options, True, [run], 0, perturb)


def test_checkpoints_are_read_and_sampled(monkeypatch):
    checks = sampled()
    assert len(checks) == 2 and failed(checks) == set()
    assert len(failed(sampled(perturb=0.01))) == 2
    # A training checkpoint's "model" instead of its "ema" must be noticed.
    held = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: {n: v for n, v in held(*a, **k).items() if n != "ema"})
    assert {quantity.split(", ")[-1] for quantity in failed(sampled())} == {TRAINING}


def test_draws_that_are_left_or_too_many_end_the_comparison():
    with pytest.raises(RuntimeError, match="left 1 draws of torch.randn"), handed_draws(randn=[torch.ones(1)] * 2):
        torch.randn(1)
    with pytest.raises(RuntimeError, match="more than 0 times"), handed_draws(randn=[torch.ones(1)]):
        torch.rand(1)


@pytest.mark.parametrize(
    ("module", "load", "published", "samplers"),
    [(parity_dit, "load_dit", StandInDit(), "dit_checks"), (parity_sit, "load_sit", StandInSit(), "sit_checks")],
    ids=["dit", "sit"],
)
def test_commands_pass_and_fail_by_exit_code(module, load, published, samplers, capsys, monkeypatch):
    """On a small model, under the name B/2; counts and samplers have tests of their own."""
    monkeypatch.setattr(module, "sized", lambda name, **rest: CONFIG)
    monkeypatch.setattr(module, load, lambda path, option: published)
    monkeypatch.setattr(module, "counts", lambda build_reference, learn_sigma: [])
    sampling = Check("sampled by ode, x", 0.0, 1e-5)
    monkeypatch.setattr(module, samplers, lambda *given: [sampling])
    common = ["--reference", "x", "--threads", str(torch.get_num_threads())]
    module.main(common)
    out = capsys.readouterr().out
    assert "parity: passed" in out and "sampled by ode" in out
    with pytest.raises(SystemExit) as exit_:
        module.main([*common, "--perturb", "0.01"])
    assert exit_.value.code == 1
    assert "parity: FAILED: network output" in capsys.readouterr().out
    sampling = replace(sampling, error=1.0)
    with pytest.raises(SystemExit) as exit_:
        module.main(common)
    assert exit_.value.code == 1


@pytest.mark.parametrize(
    ("module", "arguments", "named"),
    [
        (parity_dit, [], "--reference"),
        (parity_dit, ["--reference", "no/such/folder"], "facebookresearch/DiT"),
        (parity_dit, ["--reference", ".", "--batch", "3"], "--batch"),
        (parity_sit, [], "--reference"),
        (parity_sit, ["--reference", "no/such/folder"], "willisma/SiT"),
        (parity_sit, ["--reference", ".", "--model", "XXL/2"], "XXL/2"),
        (parity, ["--samplers"], "--reference"),
    ],
)
def test_wrong_options_end_in_one_line(module, arguments, named, capsys):
    with pytest.raises(SystemExit) as exit_:
        module.main([*arguments, "--threads", str(torch.get_num_threads())])
    assert exit_.value.code == 2
    error = capsys.readouterr().err.strip()
    assert named in error and len(error.splitlines()) == 1


def checkout(variable: str, repository: str):
    """The path in ``variable``; the test is skipped, visibly, where it is not set."""
    if variable not in os.environ:
        pytest.skip(f"{variable} names no checkout of {repository}")
    return os.environ[variable]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_agrees_with_the_published_dit(dtype):
    published = load_dit(checkout("ERW_DIT_REPO", DIT_REPO), "ERW_DIT_REPO")
    problem = replace(DIT, dtype=dtype)
    assert failed(parity_dit.check(problem, published)) == set()
    assert "network output" in failed(parity_dit.check(problem, published, perturb=0.01))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_agrees_with_the_published_sit(dtype):
    published = load_sit(checkout("ERW_SIT_REPO", SIT_REPO), "ERW_SIT_REPO")
    problem = replace(SIT, dtype=dtype)
    assert failed(parity_sit.check(problem, published)) == set()
    assert "network output" in failed(parity_sit.check(problem, published, perturb=0.01))


@pytest.mark.parametrize(
    ("variable", "repository", "load"),
    [("ERW_DIT_REPO", DIT_REPO, load_dit), ("ERW_SIT_REPO", SIT_REPO, load_sit)],
    ids=["dit", "sit"],
)
def test_parameter_counts_are_the_published_codes(variable, repository, load):
    published = load(checkout(variable, repository), variable)
    found = counts(lambda name: published.model(sized(name, learn_sigma=True), name), learn_sigma=True)
    assert len(found) == 3 and all(count.passed for count in found)


def checks_of(family: str, perturb: float = 0.0) -> list[Check]:
    if family == "dit":
        return dit_checks(load_dit(checkout("ERW_DIT_REPO", DIT_REPO), "ERW_DIT_REPO"), 0, perturb)
    if family == "sit":
        return sit_checks(load_sit(checkout("ERW_SIT_REPO", SIT_REPO), "ERW_SIT_REPO"), 0, perturb)
    path = checkout("ERW_REFERENCE_REPO", REPA_REPO)
    published = load_published(path, "ERW_REFERENCE_REPO")
    return repa_checks(published, load_repa_samplers(path, "ERW_REFERENCE_REPO"), 0, perturb)


@pytest.mark.parametrize(("family", "count"), [("dit", 12), ("sit", 42), ("repa", 24)])
def test_samples_as_the_published_samplers(family, count):
    checks = checks_of(family)
    assert len(checks) == count and failed(checks) == set()
    assert len(failed(checks_of(family, perturb=0.01))) == count
