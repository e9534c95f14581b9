"""The operations that blocks and losses are made of, as one injected set.

A model calls ``ops.adaln_modulate(...)`` and never asks which implementation it got; `resolve` decides once, at start.
Formulas, shapes and argument names are those of the kernel library (`erw.kernels`), whose plain references are the default
set here. Where an operation holds weights, the set takes the module that owns them.

Precision rule of every op: arithmetic in fp32 (fp64 for fp64 input), result rounded once.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor, nn

from erw import kernels
from erw.errors import UserError
from erw.kernels import fused as pairs
from erw.kernels._cpu_adaln import cpu_adaln_modulate, cpu_gated_residual, cpu_gated_residual_adaln
from erw.kernels._cpu_linear import cpu_linear
from erw.kernels._cpu_mlp import cpu_mlp
from erw.kernels.attention import attention_backend
from erw.kernels.stacked_linear import stacked_linear

_SPECS = {spec.name: spec for spec in kernels.SPECS}


def _heads_by(function: Callable) -> Callable:
    """`erw.kernels.qk_norm_rope` or its reference, for norms that are modules (None: no norm).

    ``op(qkv, q_norm=, k_norm=, rope=)``: qkv (B, T, 3, heads, H) to q, k, v (B, heads, T, H); rope (2, T, H) or None.
    """

    def qk_norm_rope(
        qkv: Tensor, *, q_norm: nn.LayerNorm | None, k_norm: nn.LayerNorm | None, rope: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        norms = {"norm": "none", "rope": rope}
        if q_norm is not None and k_norm is not None:
            norms |= {"norm": "layer", "eps": q_norm.eps, "q_weight": q_norm.weight, "q_bias": q_norm.bias}
            norms |= {"k_weight": k_norm.weight, "k_bias": k_norm.bias}
        return function(qkv, **norms)

    return qk_norm_rope


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention without mask: (B, heads, T, H) three times to (B, heads, T, H)."""
    return F.scaled_dot_product_attention(q, k, v)


def adaln_linear(x: Tensor, linear: nn.Linear, *, shift: Tensor, scale: Tensor) -> Tensor:
    """``linear(adaln_modulate(x))``: (B, T, D) to (B, T, E)."""
    return linear(_SPECS["adaln_modulate"].reference(x, shift=shift, scale=scale))


def modulations(c: Tensor, layers: list[nn.Sequential]) -> list[Tensor]:
    """Shifts, scales and gates of every block (DiT, Sec. 3.2): ``layer(c)`` of each SiLU + Linear, c (B, D) to (B, 6D)."""
    return [layer(c) for layer in layers]


def mlp(x: Tensor, fc1: nn.Linear, fc2: nn.Linear) -> Tensor:
    """``fc2(gelu(fc1(x)))``, GELU by its tanh approximation: (B, T, D) to (B, T, D)."""
    return fc2(F.gelu(fc1(x), approximate="tanh"))


@dataclass(frozen=True, kw_only=True)
class OpSet:
    """One implementation of each op. Swap one field with `dataclasses.replace` to see what it buys."""

    adaln_modulate: Callable
    gated_residual: Callable
    gated_residual_adaln: Callable
    qk_norm_rope: Callable
    attention: Callable
    adaln_linear: Callable
    mlp: Callable
    modulations: Callable
    cosine_alignment: Callable
    nt_xent_alignment: Callable
    nt_xent_in_image: Callable
    velocity_mse: Callable


_ALIKE = (
    "adaln_modulate", "gated_residual", "gated_residual_adaln", "cosine_alignment", "nt_xent_alignment", "nt_xent_in_image",
    "velocity_mse",
)  # fmt: skip

REFERENCE = OpSet(
    **{name: _SPECS[name].reference for name in _ALIKE},
    qk_norm_rope=_heads_by(_SPECS["qk_norm_rope"].reference),
    attention=attention,
    adaln_linear=adaln_linear,
    mlp=mlp,
    modulations=modulations,
)
"""Plain PyTorch."""


def _fused_mlp(x: Tensor, fc1: nn.Linear, fc2: nn.Linear) -> Tensor:
    return pairs.mlp(x, fc1_weight=fc1.weight, fc1_bias=fc1.bias, fc2_weight=fc2.weight, fc2_bias=fc2.bias)


def _one_modulation(c: Tensor, layers: list[nn.Sequential]) -> list[Tensor]:
    linears = [layer[1] for layer in layers]
    return list(stacked_linear(F.silu(c), [linear.weight for linear in linears], [linear.bias for linear in linears]))


def _fused_adaln_linear(x: Tensor, linear: nn.Linear, *, shift: Tensor, scale: Tensor) -> Tensor:
    return pairs.adaln_linear(x, shift=shift, scale=scale, weight=linear.weight, bias=linear.bias)


FUSED = OpSet(
    **{name: _SPECS[name].op for name in _ALIKE},
    qk_norm_rope=_heads_by(_SPECS["qk_norm_rope"].op),
    attention=attention,
    adaln_linear=_fused_adaln_linear,
    mlp=_fused_mlp,
    modulations=_one_modulation,
)
"""Kernels, and functions around matmuls that keep less for the backward."""


def _cpu_mlp(x: Tensor, fc1: nn.Linear, fc2: nn.Linear) -> Tensor:
    return cpu_mlp(x, fc1.weight, fc1.bias, fc2.weight, fc2.bias)


def _cpu_adaln_linear(x: Tensor, linear: nn.Linear, *, shift: Tensor, scale: Tensor) -> Tensor:
    return cpu_linear(cpu_adaln_modulate(x, shift=shift, scale=scale), linear.weight, linear.bias)


_FOR_CPU_COMPILER = {
    "adaln_linear": _cpu_adaln_linear,
    "gated_residual": cpu_gated_residual,
    "gated_residual_adaln": cpu_gated_residual_adaln,
    "mlp": _cpu_mlp,
}


def for_cpu_compiler(ops: OpSet) -> OpSet:
    """``ops`` as blocks that torch compiles for a CPU take it: what is plain, in forms that compile to faster code."""
    plain = [name for name in _FOR_CPU_COMPILER if getattr(ops, name) is getattr(REFERENCE, name)]
    return replace(ops, **{name: _FOR_CPU_COMPILER[name] for name in plain})


def resolve(name: str, attention: str = "sdpa") -> OpSet:
    """The op set called ``name``: reference (plain PyTorch), fused (kernels) or auto, which is reference until `erw.settle` has
    asked the device; with ``attention``'s backend in it.

    Raises `UserError` for a name that is not known and for a backend whose package is missing.
    """
    if name not in ("auto", "reference", "fused"):
        raise UserError(f"--engine.ops {name} is not known; known: auto, reference, fused")
    opset = FUSED if name == "fused" else REFERENCE
    try:
        return opset if attention == "sdpa" else replace(opset, attention=attention_backend(attention))
    except (ValueError, ImportError) as error:
        raise UserError(f"--engine.attention {attention}: {error}") from None
