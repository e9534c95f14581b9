"""Does our model compute what the published REPA code computes? ``python -m erw.bench.parity --reference CHECKOUT``

Same weights (drawn non-zero, loaded strictly by their public names), same x, t, y, noise and teacher features through
both; then the velocity, both losses and every parameter gradient of L = L_velocity + 0.5 L_align are compared by
relative L2 error. Ours is the real `TrainStep` with the real REPA method; theirs is the real SiT and SILoss, with only
the random draws handed in. Without ``--reference`` the other side is `erw.bench.reference`. ``--samplers`` adds whole
sampling runs from a checkpoint (see `erw.bench._parity_samplers`). Runs on the CPU.
"""

import argparse
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from erw.align.repa import Repa
from erw.bench._parity import (
    DTYPES,
    LIMITS,
    Outcome,
    at_least,
    compare,
    gradients_of,
    handed_draws,
    load_ours,
    load_theirs,
    parser_of,
    relative_error,
)
from erw.bench._parity_report import Check, counts, report
from erw.bench._parity_samplers import repa_checks
from erw.bench.published import load_published, load_repa_samplers
from erw.bench.reference import Losses, ReferenceSiT, reference_losses
from erw.errors import UserError, exits_cleanly
from erw.models.sit import SiT, SiTConfig, sized
from erw.objectives.flow import Flow, interpolate
from erw.step import TrainStep
from erw.types import Targets, TeacherSpec

__all__ = ["Outcome", "Problem", "check", "compare", "fixed_draws", "main", "relative_error", "run_ours", "run_reference"]

COEFFICIENT = 0.5


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What both sides are given. Everything follows from ``seed``."""

    config: SiTConfig
    encoder_depth: int = 8
    feature_width: int = 768
    batch: int = 2
    dtype: torch.dtype = torch.float64
    seed: int = 0

    def inputs(self) -> dict[str, Tensor]:
        """latents and noise (B, C, S, S), t (B,), labels (B,) with one null class, features (B, T, F)."""
        generator = torch.Generator().manual_seed(self.seed)
        config, size = self.config, (self.batch, self.config.in_channels, *[self.config.input_size] * 2)
        labels = torch.randint(config.num_classes, (self.batch,), generator=generator)
        labels[-1] = config.num_classes
        drawn = {
            "latents": torch.randn(size, generator=generator),
            "noise": torch.randn(size, generator=generator),
            "t": torch.rand((self.batch,), generator=generator),
            "features": torch.randn((self.batch, config.tokens, self.feature_width), generator=generator),
        }
        return {"labels": labels} | {name: value.to(self.dtype) for name, value in drawn.items()}


def fixed_draws(t: Tensor, noise: Tensor) -> AbstractContextManager[None]:
    """Within, ``torch.rand`` gives t as (B, 1, 1, 1) and ``torch.randn_like`` the noise, once each."""
    return handed_draws(rand=[t.view(-1, 1, 1, 1)], randn_like=[noise])


def run_reference(problem: Problem, model: nn.Module, losses: Losses) -> Outcome:
    """Forward and backward of the reference."""
    given = problem.inputs()
    table = load_theirs(model, problem.seed, problem.dtype)
    seen: list[Tensor] = []

    def recording(*args, **kwargs):
        output = model(*args, **kwargs)
        seen.append(output[0].detach())
        return output

    with fixed_draws(given["t"], given["noise"]):
        per_sample, align = losses(recording, given["latents"], given["labels"], given["features"])
    denoising = per_sample.mean()
    (denoising + COEFFICIENT * align).backward()
    return _outcome(seen[0], denoising, align, table, model)


def run_ours(problem: Problem, reference: nn.Module, perturb: float = 0.0) -> Outcome:
    """The same through our `TrainStep`, with the weights that `load_ours` puts in."""
    config, given = problem.config, problem.inputs()
    method = Repa(depth=problem.encoder_depth, coefficient=COEFFICIENT)
    heads = method.build_heads(config, (TeacherSpec(name="given", width=problem.feature_width, grid=config.grid),))
    step = TrainStep(SiT(config), heads, method, Flow(), method.phase(0))
    table = load_ours(step, reference, problem.seed, problem.dtype, perturb)
    seen: list[Tensor] = []
    step.model.register_forward_hook(lambda module, args, output: seen.append(output.prediction.detach()))
    x, target = interpolate(given["latents"], given["noise"], given["t"])
    found = step(x, given["t"], given["labels"], {"velocity": target}, Targets((given["features"],)))
    found["loss"].backward()
    return _outcome(seen[0], found["velocity"], found["align"], table, step)


def _outcome(velocity: Tensor, denoising: Tensor, align: Tensor, table: Tensor, module: nn.Module) -> Outcome:
    outputs = {"position table": table, "velocity": velocity, "denoising loss": denoising.detach()}
    return Outcome(outputs | {"alignment loss": align.detach()}, gradients_of(module))


def check(problem: Problem, build: Callable[[], nn.Module], losses: Losses, perturb: float = 0.0) -> list[Check]:
    """Both sides, one after the other so that only one model is alive at a time, and their comparison."""
    theirs = run_reference(problem, build(), losses)
    with torch.device("meta"):
        names = build()
    return compare(run_ours(problem, names, perturb), theirs, LIMITS[problem.dtype])


@exits_cleanly
def main(arguments: list[str] | None = None) -> None:
    """Command line. Exit code 1 where a limit is exceeded, 2 for a wrong option."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    config = sized(options.model)
    depth = options.encoder_depth
    at_least("--batch", options.batch, 1)
    if not 1 <= depth <= config.depth:
        raise UserError(f"--encoder-depth {depth} is not a block of {options.model}: it has 1 to {config.depth}")
    if options.samplers and not options.reference:
        raise UserError("--samplers compares with the published samplers: name their checkout with --reference")
    dtype = DTYPES[options.dtype]
    problem = Problem(config=config, encoder_depth=depth, batch=options.batch, dtype=dtype, seed=options.seed)
    shape = {"encoder_depth": depth, "feature_width": problem.feature_width}
    if options.reference:
        published = load_published(options.reference, "--reference")
        build, losses = lambda: published.model(config, name=options.model, **shape), published.losses()
        counted = counts(lambda name: published.model(sized(name), name=name, **shape))
    else:
        build, losses = lambda: ReferenceSiT(config, **shape), reference_losses
        counted = counts(lambda name: ReferenceSiT(sized(name), **shape))
    checks = check(problem, build, losses, options.perturb)
    if options.samplers:
        checks += repa_checks(published, load_repa_samplers(options.reference, "--reference"), options.seed, options.perturb)
    side = options.reference or "erw.bench.reference"
    if not report(checks, counted, f"{options.model} {options.dtype}, batch {options.batch}, against {side}"):
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    reference = "checkout of sihyun-yu/REPA (default: our own rendering)"
    parser = parser_of("parity", __doc__.splitlines()[0], reference)
    parser.add_argument("--batch", type=int, default=2, help="samples (default 2)")
    parser.add_argument("--encoder-depth", type=int, default=8, help="block that is aligned (default 8)")
    parser.add_argument("--samplers", action="store_true", help="read its checkpoint and compare its samplers too")
    return parser


if __name__ == "__main__":
    main()
