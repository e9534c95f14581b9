"""What the parity checks share: the same drawn weights and random numbers on both sides, and the comparison."""

import argparse
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from unittest.mock import patch

import torch
from torch import Tensor, nn

from erw.align import Plain
from erw.bench._parity_report import Check
from erw.errors import UserError
from erw.models.sit import SiT, SiTConfig, SiTOutput
from erw.objectives import Objective
from erw.step import TrainStep, public_name

# Largest relative L2 error: well above the rounding of 28 blocks, well below any difference in the formula.
LIMITS = {torch.float64: 1e-9, torch.float32: 1e-5}
DTYPES = {"fp64": torch.float64, "fp32": torch.float32}
_DRAWS = ("rand", "randn", "randn_like")


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


def drawn_state(own: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """A state dict of the reference's names and shapes; its fixed position table stays as it built it."""
    return {name: value.clone() if name == "pos_embed" else draw_weight(name, value.shape, seed) for name, value in own.items()}


def load_theirs(model: nn.Module, seed: int, dtype: torch.dtype) -> Tensor:
    """Put drawn weights into the reference, strictly by name; returns its position table (1, T, D) as it built it.

    eval() only turns its label dropout off: nothing else depends on it.
    """
    table = model.state_dict()["pos_embed"].clone()
    model.load_state_dict(drawn_state(model.state_dict(), seed), strict=True)
    model.to(dtype).eval()
    return table


def load_ours(step: TrainStep, reference: nn.Module, seed: int, dtype: torch.dtype, perturb: float = 0.0) -> Tensor:
    """Put the same weights into ``step``, strictly by public name; returns our position table (1, T, D).

    ``reference`` gives names and shapes only (it may lie on the meta device). ``perturb`` multiplies fc1 of the middle
    block by 1 + perturb: the comparison must then fail.
    """
    table = step.model.pos_embed.clone()
    private = {public_name(name): name for name in step.state_dict()}
    state = drawn_state(reference.state_dict() | {"pos_embed": table}, seed)
    step.load_state_dict({private.get(name, name): value for name, value in state.items()}, strict=True)
    step.to(dtype).eval()
    perturb_weight(step.model, perturb)
    return table


@torch.no_grad()
def perturb_weight(model: SiT, share: float) -> None:
    """Multiply fc1 of the middle block by 1 + share."""
    model.blocks[len(model.blocks) // 2].mlp.fc1.weight.mul_(1 + share)


def plain_step(config: SiTConfig, objective: Objective) -> TrainStep:
    """Our training step without alignment."""
    method = Plain()
    return TrainStep(SiT(config), nn.Module(), method, objective, method.phase(0))


def widen_time(model: nn.Module) -> None:
    """Let SiT's and DiT's published network run in fp64: their sinusoid is always fp32, which an fp64 Linear refuses.

    Ours is fp32 too and cast in the same place, so no value changes.
    """
    model.t_embedder.mlp.register_forward_pre_hook(lambda mlp, given: (given[0].to(mlp[0].weight.dtype),))


@contextmanager
def watched(model: nn.Module) -> Iterator[list[Tensor]]:
    """Within, every prediction of ``model``, theirs or ours, is put into the list; it will keep its gradient."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, given: tuple, output) -> None:
        prediction = output.prediction if isinstance(output, SiTOutput) else output
        prediction.retain_grad()
        seen.append(prediction)

    handle = model.register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def handed_draws(**supply: list[Tensor]) -> Iterator[None]:
    """Within, ``torch.rand``, ``torch.randn`` and ``torch.randn_like`` give the tensors listed for them, in turn.

    Raises RuntimeError where the code inside draws more or less than that: then something else would be compared.
    """
    left = {kind: list(supply.get(kind, ())) for kind in _DRAWS}
    count = {kind: len(values) for kind, values in left.items()}

    def stand_in(kind: str) -> Callable:
        def draw(*args, **kwargs) -> Tensor:
            if not left[kind]:
                times = "once" if count[kind] == 1 else f"{count[kind]} times"
                raise RuntimeError(f"the reference called torch.{kind} more than {times} in a step")
            return left[kind].pop(0)

        return draw

    with ExitStack() as stack:
        for kind in _DRAWS:
            stack.enter_context(patch.object(torch, kind, stand_in(kind)))
        yield
    for kind, values in left.items():
        if values:
            never = "never called" if len(values) == count[kind] else f"left {len(values)} draws of"
            raise RuntimeError(f"the reference {never} torch.{kind}")


def by_sample(name: str, values: Tensor, tags: list[str]) -> dict[str, Tensor]:
    """One entry for each sample: compared together, a small one would hide behind a large one."""
    return {f"{name}, {tag}": value.detach() for tag, value in zip(tags, values, strict=True)}


def gradients_of(module: nn.Module) -> dict[str, Tensor]:
    """The gradients that ``module`` holds, by public name."""
    return {public_name(name): p.grad for name, p in module.named_parameters() if p.grad is not None}


def relative_error(ours: Tensor | None, theirs: Tensor | None) -> float:
    """||ours - theirs|| / ||theirs|| in fp64; infinite where one side is missing, misshapen or the reference is 0."""
    if ours is None or theirs is None or ours.shape != theirs.shape:
        return float("inf")
    size = torch.linalg.vector_norm(theirs, dtype=torch.float64).item()
    # A reference that is exactly zero would compare nothing.
    return torch.linalg.vector_norm(ours - theirs, dtype=torch.float64).item() / size if size else float("inf")


def compare(ours: Outcome, theirs: Outcome, limit: float) -> list[Check]:
    """One `Check` for each output and each gradient that either side has."""
    names = [*theirs.outputs, *(ours.outputs.keys() - theirs.outputs.keys())]
    checks = [Check(name, relative_error(ours.outputs.get(name), theirs.outputs.get(name)), limit) for name in names]
    for name in sorted(ours.gradients.keys() | theirs.gradients.keys()):
        error = relative_error(ours.gradients.get(name), theirs.gradients.get(name))
        checks.append(Check(f"gradient {name}", error, limit))
    return checks


def parser_of(module: str, description: str, reference: str) -> argparse.ArgumentParser:
    """The options that all parity checks have; ``reference`` says what --reference is."""
    parser = argparse.ArgumentParser(prog=f"python -m erw.bench.{module}", description=description)
    parser.add_argument("--reference", metavar="PATH", help=reference)
    parser.add_argument("--model", default="B/2", help="published size such as XL/2 (default B/2)")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp64", help="limit 1e-9 or 1e-5 (default fp64)")
    parser.add_argument("--perturb", type=float, default=0.0, help="change one of our weights by this share: must fail")
    parser.add_argument("--seed", type=int, default=0, help="of weights and inputs (default 0)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    return parser


def at_least(option: str, value: int, least: int) -> None:
    """Raise `UserError` where the number given for ``option`` is too small."""
    if value < least:
        raise UserError(f"{option} must be at least {least}, not {value}")
