"""One front for attention: softmax(q k^T / sqrt(H)) v without mask, by a backend that is named and never changes silently.

    name       what runs                                                          layout it wants
    math       torch's plain form (any device, any dtype)                         (B, heads, T, H)
    sdpa       torch.nn.functional.scaled_dot_product_attention, torch's choice   (B, heads, T, H)
    flash, efficient, cudnn    the same, held to that one of torch's kernels      (B, heads, T, H)
    matmul     matmuls and a kept softmax (any float dtype); CPUs                 (B, heads, T, H)
    fa2        flash-attn 2 (flash_attn)                                          (B, T, heads, H)
    fa3        flash-attn 3 (flash_attn_interface), Hopper                        (B, T, heads, H)
    fa4        flash-attn 4 (flash_attn.cute), Hopper and Blackwell               (B, T, heads, H)
    xformers   xformers.ops.memory_efficient_attention                            (B, T, heads, H)

`attention_backend` gives the function for a name; ``auto`` measures those that can run and takes the fastest. Whether a
backend can run is found by running it on the shape in question, never guessed from a version. Head widths 64 and 72 (XL)
and any T, 257 too, are the caller's business to ask for; a backend that cannot is named with its reason.
"""

import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from erw.kernels._matmul_attention import matmul_attention

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]

_TORCH = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
# name: (module, function); each takes and gives (B, T, heads, H).
_PACKAGES = {
    "fa2": ("flash_attn", "flash_attn_func"),
    "fa3": ("flash_attn_interface", "flash_attn_func"),
    "fa4": ("flash_attn.cute", "flash_attn_func"),
    "xformers": ("xformers.ops", "memory_efficient_attention"),
}
BACKENDS = ("math", "sdpa", "flash", "efficient", "cudnn", "matmul", *_PACKAGES)


@dataclass(frozen=True)
class Problem:
    """What a backend is asked to do."""

    batch: int
    heads: int
    tokens: int
    head_width: int
    dtype: torch.dtype
    device: torch.device

    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """Random q, k, v (B, heads, T, H) with gradients, laid out (B, T, heads, H) as the model's are."""
        size = (self.batch, self.tokens, self.heads, self.head_width)
        made = (torch.randn(size, dtype=self.dtype, device=self.device) for _ in range(3))
        return tuple(t.transpose(1, 2).requires_grad_() for t in made)


def attention_reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The definition, in fp32 (fp64 for fp64): (B, heads, T, H) three times to (B, heads, T, H)."""
    wide = torch.promote_types(q.dtype, torch.float32)
    weights = torch.softmax(q.to(wide) @ k.to(wide).transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1)
    return (weights @ v.to(wide)).to(q.dtype)


def attention(q: Tensor, k: Tensor, v: Tensor, *, backend: str = "sdpa") -> Tensor:
    """Attention by the named backend: (B, heads, T, H) three times to (B, heads, T, H), in any memory layout.

    Raises ValueError for an unknown name and for shapes that do not fit each other; a backend that cannot do what it is
    asked raises its own error: nothing else is tried.
    """
    if not q.shape == k.shape == v.shape or q.dim() != 4:
        raise ValueError(
            f"q, k, v have shapes {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}, should be (B, heads, T, H)"
        )
    return attention_backend(backend)(q, k, v)


@cache
def attention_backend(name: str) -> Attention:
    """The function of backend ``name``. Raises ValueError for an unknown one, ImportError where its package is missing."""
    if name == "sdpa":
        return F.scaled_dot_product_attention
    if name == "matmul":
        return matmul_attention
    if name in _TORCH:
        return _held_to(_TORCH[name])
    if name not in _PACKAGES:
        raise ValueError(f"attention backend is {name!r}, should be one of {', '.join(BACKENDS)}")
    module, function = _PACKAGES[name]
    return _of_package(getattr(importlib.import_module(module), function))


def _held_to(backend: SDPBackend) -> Attention:
    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v)

    return run


def _of_package(function: Callable) -> Attention:
    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = function(*(t.transpose(1, 2) for t in (q, k, v)))
        # Some give (out, logsumexp).
        return (out[0] if isinstance(out, tuple) else out).transpose(1, 2)

    return run


def unusable(name: str, problem: Problem) -> str | None:
    """Why ``name`` cannot do ``problem``, forward and backward, in a line; None where it can. It is tried."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            out = attention_backend(name)(*(inputs := problem.draw()))
            torch.autograd.grad(out.float().sum(), inputs)
            if not out.isfinite().all():
                return "its output is not finite"
        except (ImportError, RuntimeError, ValueError, TypeError, NotImplementedError, AssertionError, OSError) as error:
            return _reason(error, [str(warning.message) for warning in said])
    return None


def _reason(error: Exception, said: list[str]) -> str:
    """A line. Torch gives its reason against one of its kernels as warnings, among others of kernels that were not asked."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
    reasons = [text.partition("(Triggered internally")[0].strip() for text in said]
    reasons = [text for text in reasons if text and not any(word in text for word in ("not used because", "disabled"))]
    return ": ".join([line, *reasons]).replace("\n", " ")[:300]


def choose(
    problem: Problem, time: Callable[[Callable[[], None]], float], compiled: bool = False
) -> tuple[str, dict[str, float | str]]:
    """(the fastest backend for ``problem``, what each took or why it cannot).

    ``time(run)`` gives the seconds of one forward and backward; the caller owns the clock. ``compiled``: as torch compiles
    blocks for a CPU, which fuses what a backend is made of.
    """
    found: dict[str, float | str] = {}
    for name in BACKENDS:
        if name == "math":
            continue
        reason = unusable(name, problem)
        found[name] = reason if reason is not None else time(_step(name, problem, compiled))
    timed = {name: value for name, value in found.items() if isinstance(value, float)}
    return (min(timed, key=timed.get) if timed else "math"), found


def _step(name: str, problem: Problem, compiled: bool) -> Callable[[], None]:
    inputs, run = problem.draw(), attention_backend(name)
    if compiled:
        from erw.kernels._cpu_compiler import OPTIONS

        run = torch.compile(run, dynamic=False, options=OPTIONS)
    gradient = torch.randn_like(inputs[0])
    return lambda: torch.autograd.grad(run(*inputs), inputs, gradient)
