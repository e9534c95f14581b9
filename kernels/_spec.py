"""What tests and benchmarks know of an operation. Each file of this folder ends with a `Spec`; ``SPECS`` lists them."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

Inputs = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A problem's size: B samples of T tokens of width D = heads * head width."""

    batch: int = 2
    tokens: int = 16
    width: int = 64
    heads: int = 4

    def latent(self, channels: int = 4) -> tuple[int, int, int, int]:
        """(B, C, H, W) of an image whose 2 x 2 patches make about so many tokens; of odd sides where these are odd."""
        side = 2 * math.isqrt(self.tokens) + self.tokens % 2
        return self.batch, channels, side, side


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One operation.

    op          the public function; reference: the same in plain PyTorch, any float dtype, fp64 in fp64
    inputs      (case, generator) to fp64 CPU tensors by argument name; the harness casts them to ``roles``' dtypes
    roles       argument to its role: ``stream`` (residual stream), ``matmul`` (matmul operands) or ``float32``
    grads       arguments that have gradients
    reduces     those of them (and of the outputs, as ``out0``, ...) that are sums over tokens, so rounded more loosely
    options     keyword arguments that are not tensors, by the name of the variant that they make; they come before inputs of
                the same name (None leaves a tensor out, a function makes one from the inputs)
    rows        argument to the order of dimensions in which its rows take turns in the kinds of `telling_rows`, where that
                is not its own
    trace       calls forward and backward launchers on inputs of any device, for ahead-of-time compilation
    traffic     (case, bytes of a stream element, of a matmul element) to bytes moved (forward, backward)
    timed       (provider, inputs, options) to what a benchmark calls, where ``op`` copies what the real call overwrites;
                providers are ``kernel``, ``eager`` and ``apex``
    cases       sizes that matter for this operation, besides the common ones
    common      whether the tests try the common sizes too (not where the interpreter would take minutes)
    """

    name: str
    op: Callable
    reference: Callable
    inputs: Callable[[Case, torch.Generator], Inputs]
    roles: dict[str, str]
    grads: tuple[str, ...]
    reduces: tuple[str, ...] = ()
    options: dict[str, dict] = field(default_factory=lambda: {"plain": {}})
    rows: dict[str, tuple[int, ...]] = field(default_factory=dict)
    trace: Callable[..., None]
    traffic: Callable[[Case, int, int], tuple[int, int]]
    timed: Callable[..., Callable[[], object]] | None = None
    cases: tuple[Case, ...] = ()
    common: bool = True

    def sizes(self, common: tuple[Case, ...]) -> tuple[Case, ...]:
        """What to test with, ``common`` being what every operation is tested with."""
        return (*common, *self.cases) if self.common else self.cases


def telling_rows(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """fp64 (..., D) normal rows that make faults visible: of unit size, of scale 1e-2 (a wrong eps or variance shows) and
    of mean 30 (a rounded mean shows), in turn."""
    rows = torch.randn(shape, generator=generator, dtype=torch.float64)
    kind = torch.arange(rows[..., 0].numel()).view(shape[:-1]).unsqueeze(-1) % 3
    return torch.where(kind == 1, rows * 1e-2, torch.where(kind == 2, rows + 30, rows))
