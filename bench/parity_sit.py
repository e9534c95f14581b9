"""Do our network, flow and samplers compute what the published SiT code computes? ``--reference CHECKOUT``

``python -m erw.bench.parity_sit``: the same drawn weights by their public names, the same x, t, labels and noise through
both; then outputs, each sample's velocity loss and every parameter gradient for both interpolants, the SDE's drift and
diffusion in every form, guidance, and whole sampling runs from a checkpoint (see `erw.bench._parity_samplers`). Ours is
the real `TrainStep` with the real objective; theirs is the real code, with only the random draws handed in.

Their t runs from noise to data, so it is 1 - ours and their velocity is minus ours: the same network is given 1 - t and
its output is negated. Runs on the CPU.
"""

import sys
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from erw.bench._parity import (
    DTYPES,
    LIMITS,
    Outcome,
    at_least,
    by_sample,
    compare,
    gradients_of,
    handed_draws,
    load_ours,
    load_theirs,
    parser_of,
    plain_step,
    watched,
    widen_time,
)
from erw.bench._parity_report import Check, counts, report
from erw.bench._parity_samplers import sit_checks
from erw.bench.published import FORMS, PATHS, SIT, PublishedSit, load_sit
from erw.errors import UserError, exits_cleanly
from erw.models.sit import SiT, SiTConfig, SiTOutput, sized
from erw.objectives.flow import Flow, interpolate
from erw.samplers import SampleConfig
from erw.samplers.flow import half_diffusion, score
from erw.samplers.guidance import guided
from erw.step import TrainStep

GUIDANCE = 4.0
NORM = 0.7  # of the diffusion coefficient: not 1, so that a form that leaves it out is noticed
TIMES = (0.0, 0.05, 0.3, 0.5, 0.8, 0.96)  # theirs: 0 is noise


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What both sides are given. Everything follows from ``seed``."""

    config: SiTConfig
    batch: int = 3
    dtype: torch.dtype = torch.float64
    seed: int = 0

    def inputs(self) -> dict[str, Tensor]:
        """latents, noise, state and velocity (B, C, S, S), t (B,) as they count it, labels (B,) with one null class."""
        generator = torch.Generator().manual_seed(self.seed)
        size = (self.batch, self.config.in_channels, *[self.config.input_size] * 2)
        labels = torch.randint(self.config.num_classes, (self.batch,), generator=generator)
        labels[-1] = self.config.num_classes
        drawn = {name: torch.randn(size, generator=generator) for name in ("latents", "noise", "state", "velocity")}
        # Multiples of 2^-24, so that 1 - t is exact and both networks see the same t.
        drawn["t"] = torch.rand((self.batch,), generator=generator)
        return {"labels": labels} | {name: value.to(self.dtype) for name, value in drawn.items()}

    def time(self, t: float) -> Tensor:
        """(B,) times that are all ``t``."""
        return torch.full((self.batch,), t, dtype=self.dtype)


def run_reference(problem: Problem, published: PublishedSit, name: str | None = None) -> Outcome:
    """All quantities of the published code; ``name`` takes the network out of its own table of sizes."""
    model, given = published.model(problem.config, name), problem.inputs()
    table = load_theirs(model, problem.seed, problem.dtype)
    widen_time(model)
    losses, gradients = {}, {}
    for kind in PATHS:
        with handed_draws(rand=[given["t"]], randn_like=[given["noise"]]):
            terms = published.path(kind).training_losses(model, given["latents"], {"y": given["labels"]})
        losses |= _losses(kind, terms["loss"])
        terms["loss"].mean().backward()
        gradients |= _taken_gradients(model, kind)
    free = torch.full_like(given["labels"], problem.config.num_classes)
    x, y = given["state"].repeat(2, 1, 1, 1), torch.cat([given["labels"], free])
    with torch.no_grad():
        output = model(given["state"], given["t"], given["labels"])
        guided_output = model.forward_with_cfg(x, given["t"].repeat(2), y, cfg_scale=GUIDANCE)[: problem.batch]
    outputs = {"position table": table, "network output": output} | losses | {"guided output": guided_output}
    return Outcome(outputs | _their_sde(problem, published, given), gradients)


def _their_sde(problem: Problem, published: PublishedSit, given: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for kind, form, times in _sde_cases():
        drift, diffusion = published.sde(kind, form, NORM)
        x, velocity = given["state"], given["velocity"]
        # The constant form comes as a number, the others as (B, 1, 1, 1).
        values = [torch.as_tensor(diffusion(x, problem.time(t)), dtype=problem.dtype).flatten()[0] for t in times]
        found[f"SDE diffusion, {kind} {form}"] = torch.stack(values)
        for t in times:
            found[_drift(kind, form, t)] = drift(x, problem.time(t), lambda x, t, v=velocity: v)
    return found


def run_ours(problem: Problem, reference: nn.Module, perturb: float = 0.0) -> Outcome:
    """The same through our code, with the weights that `load_ours` puts in."""
    given = problem.inputs()
    step = plain_step(problem.config, Flow())
    table = load_ours(step, reference, problem.seed, problem.dtype, perturb)
    _count_from_noise(step.model)
    t, labels = 1 - given["t"], given["labels"]
    losses, gradients = {}, {}
    for kind in PATHS:
        step.objective = Flow(interpolant=kind)
        losses |= _our_losses(step, given, t)
        gradients |= _taken_gradients(step, kind)
    with torch.no_grad():
        output = -_network(step)(given["state"], t, labels)[:, : problem.config.in_channels]
        guided_output = -_our_guidance(problem, step)(given["state"], t, labels)[:, : problem.config.in_channels]
    outputs = {"position table": table, "network output": output} | losses | {"guided output": guided_output}
    return Outcome(outputs | _our_sde(problem, given), gradients)


def _count_from_noise(model: SiT) -> None:
    """Make ``model``, which has their weights, take our t and give our velocity."""
    model.register_forward_pre_hook(lambda model, given: (given[0], 1 - given[1], *given[2:]))
    model.register_forward_hook(lambda model, given, output: SiTOutput(-output.prediction, output.taps))


def _network(step: TrainStep):
    return lambda x, t, y: step.model(x, t, y).prediction


def _our_losses(step: TrainStep, given: dict[str, Tensor], t: Tensor) -> dict[str, Tensor]:
    """Each sample's loss; the gradients of their mean are left in ``step``."""
    objective: Flow = step.objective
    x, velocity = interpolate(given["latents"], given["noise"], t, objective.interpolant)
    with watched(step.model) as seen:
        step(x, t, given["labels"], {"velocity": velocity}, None)["loss"].backward()
    parts = objective.losses(seen[0].detach(), x, t, {"velocity": velocity}, step.ops)
    return _losses(objective.interpolant, parts["velocity"])


def _our_guidance(problem: Problem, step: TrainStep):
    config = SampleConfig(sampler="sde", guidance=GUIDANCE, guidance_channels=3)
    model = problem.config
    return guided(_network(step), config, model.num_classes, model.in_channels, step.objective.time_scale)


def _our_sde(problem: Problem, given: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    x, v = given["state"], -given["velocity"]
    for kind, form, times in _sde_cases():
        config = SampleConfig(diffusion=form, diffusion_norm=NORM)
        halves = []
        for their_t in times:
            t = 1 - problem.time(their_t)[0]
            halves.append(half_diffusion(config, kind, t))
            # dx / dt of `euler_maruyama`, along their time.
            found[_drift(kind, form, their_t)] = -(v - halves[-1] * score(v, x, t, kind))
        found[f"SDE diffusion, {kind} {form}"] = torch.stack(halves)
    return found


def _sde_cases() -> list[tuple[str, str, tuple[float, ...]]]:
    """(interpolant, form, their times). SBDM is infinite at the noise, where neither code evaluates it."""
    return [(kind, form, TIMES[1:] if form == "sbdm" else TIMES) for kind in PATHS for form in FORMS]


def _drift(kind: str, form: str, t: float) -> str:
    return f"SDE drift, {kind} {form} t {t:g}"


def _losses(kind: str, losses: Tensor) -> dict[str, Tensor]:
    return by_sample("velocity loss", losses, [f"{kind} sample {number}" for number in range(len(losses))])


def _taken_gradients(module: nn.Module, kind: str) -> dict[str, Tensor]:
    taken = {f"{name}, {kind}": gradient for name, gradient in gradients_of(module).items()}
    module.zero_grad(set_to_none=True)
    return taken


def check(problem: Problem, published: PublishedSit, name: str | None = None, perturb: float = 0.0) -> list[Check]:
    """Both sides, one after the other so that only one model is alive at a time, and their comparison."""
    theirs = run_reference(problem, published, name)
    with torch.device("meta"):
        names = published.model(problem.config, name)
    return compare(run_ours(problem, names, perturb), theirs, LIMITS[problem.dtype])


@exits_cleanly
def main(arguments: list[str] | None = None) -> None:
    """Command line. Exit code 1 where a limit is exceeded, 2 for a wrong option."""
    parser = parser_of("parity_sit", __doc__.splitlines()[0], f"checkout of {SIT}")
    parser.add_argument("--batch", type=int, default=2, help="samples (default 2)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if not options.reference:
        raise UserError(f"--reference is missing: name a checkout of https://github.com/{SIT}")
    at_least("--batch", options.batch, 1)
    config = sized(options.model, learn_sigma=True)
    published = load_sit(options.reference, "--reference")
    problem = Problem(config=config, batch=options.batch, dtype=DTYPES[options.dtype], seed=options.seed)
    checks = check(problem, published, options.model, options.perturb)
    checks += sit_checks(published, options.seed, options.perturb)
    counted = counts(lambda name: published.model(sized(name, learn_sigma=True), name), learn_sigma=True)
    title = f"SiT-{options.model} {options.dtype}, batch {options.batch}, against {options.reference}"
    if not report(checks, counted, title):
        sys.exit(1)


if __name__ == "__main__":
    main()
