"""Does our model compute what the published REPA code computes? ``python -m erw.bench.parity --reference CHECKOUT``

Same weights (drawn non-zero, loaded strictly by their public names), same x, t, y, noise and teacher features through
both; then the velocity, both losses and every parameter gradient of L = L_velocity + 0.5 L_align are compared by
relative L2 error. Ours is the real `TrainStep` with the real REPA method; theirs is the real SiT and SILoss, with only
the random draws handed in. Without ``--reference`` the other side is `erw.bench.reference`. Runs on the CPU.
"""

import argparse
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from unittest.mock import patch

import torch
from torch import Tensor, nn

from erw.align.repa import Repa
from erw.bench._parity_report import Check, counts, report
from erw.bench.published import load_published
from erw.bench.reference import Losses, ReferenceSiT, reference_losses
from erw.errors import UserError, exits_cleanly
from erw.models.sit import SiT, SiTConfig, sized
from erw.objectives.flow import Flow, interpolate
from erw.step import TrainStep, public_name
from erw.types import Targets, TeacherSpec

COEFFICIENT = 0.5
# Largest relative L2 error: well above the rounding of 28 blocks, well below any difference in the formula.
LIMITS = {torch.float64: 1e-9, torch.float32: 1e-5}


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


@dataclass(frozen=True)
class Outcome:
    """What one side computed, on public names: outputs (velocity, losses, position table) and gradients."""

    outputs: dict[str, Tensor]
    gradients: dict[str, Tensor] = field(repr=False)


def draw_weight(name: str, shape: torch.Size, seed: int) -> Tensor:
    """fp32 random weight that keeps activations of order 1: std 1 / sqrt(fan-in), 0.1 for biases, 0.5 for labels.

    It depends on (seed, name, shape) alone, so no copy of 675M weights has to be kept for the second side.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
    if name.endswith("embedding_table.weight"):
        std = 0.5
    else:
        std = 0.1 if len(shape) == 1 else shape[1:].numel() ** -0.5
    return torch.randn(shape, generator=generator) * std


def drawn_state(own: dict[str, Tensor], problem: Problem) -> dict[str, Tensor]:
    """A state dict of the reference's names and shapes; its fixed position table stays as it built it."""
    return {
        name: value.clone() if name == "pos_embed" else draw_weight(name, value.shape, problem.seed)
        for name, value in own.items()
    }


@contextmanager
def fixed_draws(t: Tensor, noise: Tensor) -> Iterator[None]:
    """Within, ``torch.rand`` gives t as (B, 1, 1, 1) and ``torch.randn_like`` the noise, once each.

    Raises RuntimeError where the code inside draws more or less than that: then something else would be compared.
    """
    supply = {"rand": [t.view(-1, 1, 1, 1)], "randn_like": [noise]}

    def stand_in(kind: str) -> Callable:
        def draw(*args, **kwargs) -> Tensor:
            if not supply[kind]:
                raise RuntimeError(f"the reference called torch.{kind} more than once in a step")
            return supply[kind].pop()

        return draw

    with patch.object(torch, "rand", stand_in("rand")), patch.object(torch, "randn_like", stand_in("randn_like")):
        yield
    left = [kind for kind, values in supply.items() if values]
    if left:
        raise RuntimeError(f"the reference never called torch.{' or torch.'.join(left)}")


def run_reference(problem: Problem, model: nn.Module, losses: Losses) -> Outcome:
    """Forward and backward of the reference. eval() only turns its label dropout off: nothing else depends on it."""
    given = problem.inputs()
    table = model.state_dict()["pos_embed"].clone()
    model.load_state_dict(drawn_state(model.state_dict(), problem), strict=True)
    model.to(problem.dtype).eval()
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
    """The same through our `TrainStep`. ``reference`` gives names and shapes only (it may lie on the meta device).

    ``perturb`` multiplies fc1 of the middle block by 1 + perturb: the comparison must then fail.
    """
    config, given = problem.config, problem.inputs()
    method = Repa(depth=problem.encoder_depth, coefficient=COEFFICIENT)
    heads = method.build_heads(config, (TeacherSpec(name="given", width=problem.feature_width, grid=config.grid),))
    step = TrainStep(SiT(config), heads, method, Flow(), method.phase(0))
    table = step.model.pos_embed.clone()
    private = {public_name(name): name for name in step.state_dict()}
    state = drawn_state(reference.state_dict() | {"pos_embed": table}, problem)
    step.load_state_dict({private.get(name, name): value for name, value in state.items()}, strict=True)
    del state
    step.to(problem.dtype).eval()
    with torch.no_grad():
        step.model.blocks[config.depth // 2].mlp.fc1.weight.mul_(1 + perturb)
    seen: list[Tensor] = []
    step.model.register_forward_hook(lambda module, args, output: seen.append(output.prediction.detach()))
    x, target = interpolate(given["latents"], given["noise"], given["t"])
    found = step(x, given["t"], given["labels"], {"velocity": target}, Targets((given["features"],)))
    found["loss"].backward()
    return _outcome(seen[0], found["velocity"], found["align"], table, step)


def _outcome(velocity: Tensor, denoising: Tensor, align: Tensor, table: Tensor, module: nn.Module) -> Outcome:
    outputs = {"position table": table, "velocity": velocity, "denoising loss": denoising.detach()}
    gradients = {public_name(n): p.grad for n, p in module.named_parameters() if p.grad is not None}
    return Outcome(outputs | {"alignment loss": align.detach()}, gradients)


def relative_error(ours: Tensor | None, theirs: Tensor | None) -> float:
    """||ours - theirs|| / ||theirs|| in fp64; infinite where one side is missing, misshapen or the reference is 0."""
    if ours is None or theirs is None or ours.shape != theirs.shape:
        return float("inf")
    size = torch.linalg.vector_norm(theirs, dtype=torch.float64).item()
    # A reference that is exactly zero would compare nothing.
    return torch.linalg.vector_norm(ours - theirs, dtype=torch.float64).item() / size if size else float("inf")


def compare(ours: Outcome, theirs: Outcome, limit: float) -> list[Check]:
    """One `Check` for each output and each gradient that either side has."""
    checks = [Check(name, relative_error(ours.outputs.get(name), v), limit) for name, v in theirs.outputs.items()]
    for name in sorted(ours.gradients.keys() | theirs.gradients.keys()):
        error = relative_error(ours.gradients.get(name), theirs.gradients.get(name))
        checks.append(Check(f"gradient {name}", error, limit))
    return checks


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
    dtype = {"fp64": torch.float64, "fp32": torch.float32}[options.dtype]
    config = sized(options.model)
    depth = options.encoder_depth
    if options.batch < 1:
        raise UserError(f"--batch must be at least 1, not {options.batch}")
    if not 1 <= depth <= config.depth:
        raise UserError(f"--encoder-depth {depth} is not a block of {options.model}: it has 1 to {config.depth}")
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
    side = options.reference or "erw.bench.reference"
    if not report(checks, counted, f"{options.model} {options.dtype}, batch {options.batch}, against {side}"):
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m erw.bench.parity", description=__doc__.splitlines()[0])
    parser.add_argument("--reference", metavar="PATH", help="checkout of sihyun-yu/REPA (default: our own rendering)")
    parser.add_argument("--model", default="B/2", help="published size such as XL/2 (default B/2)")
    parser.add_argument("--dtype", choices=("fp64", "fp32"), default="fp64", help="limit 1e-9 or 1e-5 (default fp64)")
    parser.add_argument("--batch", type=int, default=2, help="samples (default 2)")
    parser.add_argument("--encoder-depth", type=int, default=8, help="block that is aligned (default 8)")
    parser.add_argument("--perturb", type=float, default=0.0, help="change one of our weights by this share: must fail")
    parser.add_argument("--seed", type=int, default=0, help="of weights and inputs (default 0)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    return parser


if __name__ == "__main__":
    main()
