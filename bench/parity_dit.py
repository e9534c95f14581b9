"""Do our network, DDPM and samplers compute what the published DiT code computes? ``--reference CHECKOUT``

``python -m erw.bench.parity_dit``: the same drawn weights by their public names, the same x, t, labels and noise through
both; then outputs, each sample's losses, every parameter gradient of mse + vlb, single steps of both samplers, guidance,
and whole sampling runs from a checkpoint (see `erw.bench._parity_samplers`). Ours is the real `TrainStep` with the real
objective; theirs is the real code, with only the random draws handed in. Runs on the CPU.
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
from erw.bench._parity_samplers import dit_checks
from erw.bench.published import DIT, PublishedDit, load_dit
from erw.errors import UserError, exits_cleanly
from erw.models.sit import SiTConfig, sized
from erw.objectives.ddpm import STEPS, Ddpm, Schedule, full_schedule
from erw.samplers import SampleConfig
from erw.samplers.ddpm import ancestral_step, ddim_step, respaced
from erw.samplers.guidance import guided
from erw.step import TrainStep

SAMPLER_STEPS = 250
ETAS = (0.0, 0.5)
GUIDANCE = 4.0


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What both sides are given. Everything follows from ``seed``."""

    config: SiTConfig
    batch: int = 4
    dtype: torch.dtype = torch.float64
    seed: int = 0

    @property
    def t(self) -> Tensor:
        """(B,) int64: timesteps 0, 1 and on to 999."""
        return _points(STEPS, self.batch)

    @property
    def positions(self) -> Tensor:
        """(B,) int64: positions in the respaced schedule, first to last."""
        return _points(SAMPLER_STEPS, self.batch)

    def inputs(self) -> dict[str, Tensor]:
        """latents, some beyond [-1, 1], noise and state (B, C, S, S), labels (B,) with one null class."""
        generator = torch.Generator().manual_seed(self.seed)
        size = (self.batch, self.config.in_channels, *[self.config.input_size] * 2)
        labels = torch.randint(self.config.num_classes, (self.batch,), generator=generator)
        labels[-1] = self.config.num_classes
        drawn = {name: torch.randn(size, generator=generator) for name in ("latents", "noise", "state")}
        return {"labels": labels} | {name: value.to(self.dtype) for name, value in drawn.items()}


def _points(count: int, batch: int) -> Tensor:
    """(batch,) int64: 0 and 1, which the posterior treats apart, and the rest evenly on to count - 1."""
    evenly = torch.linspace(0, count - 1, batch - 1, dtype=torch.float64).round().long()
    return torch.cat([torch.tensor([0, 1]), evenly[1:]])


def run_reference(problem: Problem, published: PublishedDit, name: str | None = None) -> Outcome:
    """All quantities of the published code; ``name`` takes the network out of its own table of sizes."""
    model, given = published.model(problem.config, name), problem.inputs()
    table = load_theirs(model, problem.seed, problem.dtype)
    widen_time(model)
    labels = {"y": given["labels"]}
    with published.tables_in(problem.dtype):
        with watched(model) as seen:
            losses = published.process().training_losses(model, given["latents"], problem.t, labels, given["noise"])
        losses["loss"].mean().backward()
        with torch.no_grad():
            steps = _their_steps(problem, published, model, given)
            output = model(given["state"], problem.t, given["labels"])
            guided_output = _their_guidance(problem, model, given)
    outputs = {"position table": table, "network output": output}
    outputs |= _losses(problem, losses["mse"], losses["vb"], seen[0]) | steps | {"guided output": guided_output}
    return Outcome(outputs, gradients_of(model))


def _their_steps(problem: Problem, published: PublishedDit, model: nn.Module, given: dict[str, Tensor]) -> dict[str, Tensor]:
    process = published.process(SAMPLER_STEPS)
    common = {"clip_denoised": False, "model_kwargs": {"y": given["labels"]}}
    with handed_draws(randn_like=[given["noise"]]):
        found = {"ancestral step": process.p_sample(model, given["state"], problem.positions, **common)}
    for eta in ETAS:
        with handed_draws(randn_like=[given["noise"]]):
            found[_ddim(eta)] = process.ddim_sample(model, given["state"], problem.positions, eta=eta, **common)
    return _steps(problem, {step: result["sample"] for step, result in found.items()})


def _their_guidance(problem: Problem, model: nn.Module, given: dict[str, Tensor]) -> Tensor:
    free = torch.full_like(given["labels"], problem.config.num_classes)
    x, y = given["state"].repeat(2, 1, 1, 1), torch.cat([given["labels"], free])
    return model.forward_with_cfg(x, problem.t.repeat(2), y, cfg_scale=GUIDANCE)[: problem.batch]


def run_ours(problem: Problem, reference: nn.Module, perturb: float = 0.0) -> Outcome:
    """The same through our code, with the weights that `load_ours` puts in."""
    given, objective = problem.inputs(), Ddpm()
    step = plain_step(problem.config, objective)
    table = load_ours(step, reference, problem.seed, problem.dtype, perturb)
    losses = _our_losses(problem, step, given)
    gradients = gradients_of(step)
    with torch.no_grad():
        steps = _our_steps(problem, step, given)
        output = _network(step)(given["state"], problem.t, given["labels"])
        guided_output = _our_guidance(problem, step, given)
    outputs = {"position table": table, "network output": output} | losses | steps
    return Outcome(outputs | {"guided output": guided_output}, gradients)


def _network(step: TrainStep):
    return lambda x, t, y: step.model(x, t, y).prediction


def _our_losses(problem: Problem, step: TrainStep, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each sample's losses; the gradients of their mean are left in ``step``."""
    t, target = problem.t.float(), {"noise": given["noise"], "clean": given["latents"]}
    x = full_schedule(given["latents"].device).noised(given["latents"], given["noise"], problem.t)
    with watched(step.model) as seen:
        step(x, t, given["labels"], target, None)["loss"].backward()
    parts = step.objective.losses(seen[0].detach(), x, t, target, step.ops)
    return _losses(problem, parts["mse"], parts["vlb"], seen[0])


def _our_steps(problem: Problem, step: TrainStep, given: dict[str, Tensor]) -> dict[str, Tensor]:
    schedule, x = Schedule(respaced(SAMPLER_STEPS)), given["state"]
    prediction = _network(step)(x, schedule.at("timesteps", problem.positions, x).flatten(), given["labels"])
    common = (schedule, prediction, x, problem.positions, given["noise"])
    found = {"ancestral step": ancestral_step(*common)} | {_ddim(eta): ddim_step(*common, eta) for eta in ETAS}
    return _steps(problem, found)


def _our_guidance(problem: Problem, step: TrainStep, given: dict[str, Tensor]) -> Tensor:
    config = SampleConfig(sampler="ddpm", guidance=GUIDANCE, guidance_channels=3)
    model = problem.config
    network = guided(_network(step), config, model.num_classes, model.in_channels, step.objective.time_scale)
    return network(given["state"], problem.t, given["labels"])


def _ddim(eta: float) -> str:
    return f"DDIM step eta {eta:g}"


def _losses(problem: Problem, mse: Tensor, vlb: Tensor, prediction: Tensor) -> dict[str, Tensor]:
    """The losses, and the loss's gradient with respect to the noise and the variance that the network gave.

    The variance's is compared over all samples at once: at late steps its bounds nearly meet, and the tiny gradient that is
    left is a difference of almost equal numbers, in fp32 all rounding.
    """
    tags = [f"t {int(t)}" for t in problem.t]
    noise, variance = prediction.grad.chunk(2, dim=1)
    found = by_sample("mse", mse, tags) | by_sample("vlb", vlb, tags) | by_sample("loss gradient of noise", noise, tags)
    return found | {"loss gradient of variance": variance}


def _steps(problem: Problem, found: dict[str, Tensor]) -> dict[str, Tensor]:
    tags = [f"position {int(position)}" for position in problem.positions]
    return {key: value for name, samples in found.items() for key, value in by_sample(name, samples, tags).items()}


def check(problem: Problem, published: PublishedDit, name: str | None = None, perturb: float = 0.0) -> list[Check]:
    """Both sides, one after the other so that only one model is alive at a time, and their comparison."""
    theirs = run_reference(problem, published, name)
    with torch.device("meta"):
        names = published.model(problem.config, name)
    return compare(run_ours(problem, names, perturb), theirs, LIMITS[problem.dtype])


@exits_cleanly
def main(arguments: list[str] | None = None) -> None:
    """Command line. Exit code 1 where a limit is exceeded, 2 for a wrong option."""
    parser = parser_of("parity_dit", __doc__.splitlines()[0], f"checkout of {DIT}")
    parser.add_argument("--batch", type=int, default=4, help="samples, at t from 0 to 999 (default 4)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if not options.reference:
        raise UserError(f"--reference is missing: name a checkout of https://github.com/{DIT}")
    at_least("--batch", options.batch, 4)
    config = sized(options.model, learn_sigma=True)
    published = load_dit(options.reference, "--reference")
    problem = Problem(config=config, batch=options.batch, dtype=DTYPES[options.dtype], seed=options.seed)
    checks = check(problem, published, options.model, options.perturb)
    checks += dit_checks(published, options.seed, options.perturb)
    counted = counts(lambda name: published.model(sized(name, learn_sigma=True), name), learn_sigma=True)
    title = f"DiT-{options.model} {options.dtype}, batch {options.batch}, against {options.reference}"
    if not report(checks, counted, title):
        sys.exit(1)


if __name__ == "__main__":
    main()
