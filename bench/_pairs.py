"""The functions of `erw.kernels.fused` against other ways to do the same: a matmul and the pass beside it, with their backward.

    fused      ours: one function, inputs and statistics kept, the cheap part computed again in the backward
    separate   our kernel and torch's matmuls, each with a backward of its own
    eager      plain PyTorch; compile: torch.compile of it
    epilogue   (mlp) GELU in the first matmul's epilogue, see `epilogue_mlp`

TFLOP/s count the matmuls of the formula, so a way that does one of them twice has the lower rate.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from erw.bench._modes import MODES, Inputs, kept_bytes, leaves, modes
from erw.bench._timing import Deadline, Timing, interleave
from erw.kernels import Case, adaln_modulate, bias_gelu, fused
from erw.kernels.adaln_modulate import adaln_modulate_reference

# Seconds that must be left for an operation to be begun.
NEEDED = 15.0
# Samples that are compared with fp64.
_COMPARED = 2


def eager_mlp(x: Tensor, *, fc1_weight: Tensor, fc1_bias: Tensor, fc2_weight: Tensor, fc2_bias: Tensor) -> Tensor:
    """See `erw.kernels.fused.mlp`; plain PyTorch."""
    return F.linear(F.gelu(F.linear(x, fc1_weight, fc1_bias), approximate="tanh"), fc2_weight, fc2_bias)


def separate_mlp(x: Tensor, *, fc1_weight: Tensor, fc1_bias: Tensor, fc2_weight: Tensor, fc2_bias: Tensor) -> Tensor:
    """The same with our kernel for bias and GELU."""
    return F.linear(bias_gelu(F.linear(x, fc1_weight), bias=fc1_bias), fc2_weight, fc2_bias)


def epilogue_mlp(x: Tensor, *, fc1_weight: Tensor, fc1_bias: Tensor, fc2_weight: Tensor, fc2_bias: Tensor) -> Tensor:
    """The same with GELU in the epilogue of fc1's matmul (cuBLASLt by ``torch._addmm_activation``, which has no backward).

    That epilogue gives the activation alone, and the backward needs what was before it: here x and the activation are kept
    (as many bytes as ours) and fc1's matmul is run again, a seventh matmul beside the six of forward and backward. Keeping
    the pre-activation too would take the same matmul in the forward and twice the bytes. The rest of the backward is our
    kernel's one pass, without the write of the activation, so that the ways differ in nothing else.

    On CUDA the epilogue is the tanh GELU (by torch's word; a row's error shows it); on a CPU it is the exact one, with
    the exact backward, so a CPU's error of this way is that of the approximation.
    """
    return _EpilogueMlp.apply(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias)


class _EpilogueMlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, fc1_weight, fc1_bias, fc2_weight, fc2_bias):
        flat = x.flatten(0, -2)
        activation = torch._addmm_activation(fc1_bias, flat, fc1_weight.T, use_gelu=True)
        ctx.save_for_backward(flat, activation, fc1_weight, fc1_bias, fc2_weight)
        ctx.shape = x.shape
        return F.linear(activation, fc2_weight, fc2_bias).view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        x, activation, fc1_weight, fc1_bias, fc2_weight = ctx.saved_tensors
        dout = dout.flatten(0, -2)
        hidden = F.linear(x, fc1_weight)
        dhidden, dbias = through_gelu(hidden, fc1_bias, dout @ fc2_weight, tanh=x.is_cuda)
        dx = (dhidden @ fc1_weight).view(ctx.shape)
        return dx, dhidden.T @ x, dbias, dout.T @ activation, dout.sum(dim=0)


def through_gelu(hidden: Tensor, bias: Tensor, dout: Tensor, *, tanh: bool) -> tuple[Tensor, Tensor]:
    """(dhidden (M, H), dbias (H,)) of GELU(hidden + bias): our kernel for the tanh form, plain PyTorch for the exact one."""
    if tanh:
        return torch.ops.erw.bias_gelu_backward(hidden, bias, dout, False)[:2]
    dhidden = torch.ops.aten.gelu_backward(dout, hidden + bias)
    return dhidden, dhidden.sum(dim=0)


def eager_adaln_linear(x: Tensor, *, shift: Tensor, scale: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """See `erw.kernels.fused.adaln_linear`; plain PyTorch."""
    return F.linear(adaln_modulate_reference(x, shift=shift, scale=scale), weight, bias)


def separate_adaln_linear(x: Tensor, *, shift: Tensor, scale: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same with our kernel for the modulation."""
    return F.linear(adaln_modulate(x, shift=shift, scale=scale), weight, bias)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One function around matmuls and the ways to do it; ``shapes``: (case) to the shape of each argument, which all but
    ``stream`` have in the matmuls' dtype; ``flops``: (case) to those of the forward, half of the backward's."""

    name: str
    ways: dict[str, Callable[..., Tensor]]
    shapes: Callable[[Case], dict[str, tuple[int, ...]]]
    flops: Callable[[Case], int]
    stream: tuple[str, ...] = ()

    def draw(self, case: Case, device: torch.device) -> Inputs:
        """Normal x, shift and scale, weights that keep its size; bf16 on a GPU, fp32 on a CPU."""
        generator, narrow = torch.Generator().manual_seed(0), torch.bfloat16 if device.type == "cuda" else torch.float32
        found = {}
        for name, shape in self.shapes(case).items():
            value = torch.randn(shape, generator=generator) * (shape[-1] ** -0.5 if "weight" in name else 1.0)
            found[name] = value.to(device, torch.float32 if name in self.stream else narrow)
        return found


def _mlp_shapes(case: Case) -> dict[str, tuple[int, ...]]:
    width, hidden = case.width, 4 * case.width
    return {"x": (case.batch, case.tokens, width), "fc1_weight": (hidden, width), "fc1_bias": (hidden,),
            "fc2_weight": (width, hidden), "fc2_bias": (width,)}  # fmt: skip


def _adaln_shapes(case: Case) -> dict[str, tuple[int, ...]]:
    """The linear is a block's packed q, k and v."""
    row = (case.batch, case.width)
    return {"x": (case.batch, case.tokens, case.width), "shift": row, "scale": row, "weight": (3 * case.width, case.width),
            "bias": (3 * case.width,)}  # fmt: skip


PAIRS = {
    "mlp": Pair(
        name="mlp",
        ways={"fused": fused.mlp, "separate": separate_mlp, "epilogue": epilogue_mlp, "eager": eager_mlp},
        shapes=_mlp_shapes,
        flops=lambda case: 16 * case.batch * case.tokens * case.width**2,
    ),
    "adaln_linear": Pair(
        name="adaln_linear",
        ways={"fused": fused.adaln_linear, "separate": separate_adaln_linear, "eager": eager_adaln_linear},
        shapes=_adaln_shapes,
        flops=lambda case: 6 * case.batch * case.tokens * case.width**2,
        stream=("x",),
    ),
}


def errors(ways: dict[str, Callable], pair: Pair, case: Case, device: torch.device) -> dict[str, dict[str, float]]:
    """Relative L2 errors against the plain form in fp64, by way: of the output, and the worst of the gradients."""
    small = Case(batch=min(case.batch, _COMPARED), tokens=case.tokens, width=case.width, heads=case.heads)
    inputs = pair.draw(small, device)
    names = tuple(inputs)
    gradient = torch.randn_like(pair.ways["eager"](**inputs))

    def results(way: Callable, given: Inputs) -> list[Tensor]:
        out = way(**given)
        return [out.detach(), *torch.autograd.grad(out, list(given.values()), gradient.to(out.dtype))]

    exact = results(pair.ways["eager"], leaves({n: t.double() for n, t in inputs.items()}, names))
    found = {}
    for name, way in ways.items():
        pairs = zip(results(way, leaves(inputs, names)), exact, strict=True)
        wrong = [((ours.double() - true).norm() / true.norm()).item() for ours, true in pairs]
        found[name] = {"out": wrong[0], "gradients": max(wrong[1:])}
    return found


def measure(pair: Pair, case: Case, device: torch.device, *, rounds: int, deadline: Deadline, compile: bool) -> list[dict]:
    """A row for each mode and way."""
    ways = dict(pair.ways)
    if compile:
        ways["compile"] = torch.compile(pair.ways["eager"], fullgraph=True, dynamic=False)
    inputs = pair.draw(case, device)
    names = tuple(inputs)
    wrong = errors(ways, pair, case, device)
    kept = {name: kept_bytes(way, names, inputs) for name, way in ways.items()}
    functions = {name: modes(way, names, inputs, {}) for name, way in ways.items()}
    rows = []
    for mode in MODES:
        todo = {name: by_mode[mode] for name, by_mode in functions.items()}
        timings = interleave(todo, device=device, rounds=rounds, warmup=3, flush=True, deadline=deadline)
        flops = {"forward": 1, "backward": 2, "both": 3}[mode] * pair.flops(case)
        for name, timing in timings.items():
            rows.append(_row(pair, case, mode, name, timing, flops) | {"kept_bytes": kept[name], "error": wrong[name]})
            rows[-1]["faster_than_eager"] = timings["eager"].median / timing.median
    return rows


def _row(pair: Pair, case: Case, mode: str, provider: str, timing: Timing, flops: int) -> dict:
    return {
        "operation": pair.name,
        "batch": case.batch,
        "tokens": case.tokens,
        "width": case.width,
        "mode": mode,
        "provider": provider,
        "ms": {q: getattr(timing, q) * 1e3 for q in ("median", "p20", "p80")},
        "flops": flops,
        "tflops": flops / timing.median / 1e12,
    }


def run(device: torch.device, pairs: list[Pair], cases: list[Case], *, rounds: int, deadline: Deadline, compile: bool,
        report: Callable[[list[dict]], None]) -> list[dict]:  # fmt: skip
    """All rows; ``report`` is called with what there is after each. Stops beginning new ones at the deadline."""
    rows: list[dict] = []
    for case in cases:
        for pair in pairs:
            if deadline.left() < NEEDED:
                rows.append({"operation": pair.name, "batch": case.batch, "status": "not measured: out of time"})
            else:
                rows += measure(pair, case, device, rounds=rounds, deadline=deadline, compile=compile)
            report(rows)
    return rows


def lines_of(rows: list[dict]) -> list[str]:
    """The rows as a text table."""
    numbers = "".join(f"{name:>10}" for name in ("ms", "p20", "p80", "TFLOP/s", "kept MiB", "error", "x eager"))
    lines = [f"{'function':<14}{'B':>4} {'mode':<9}{'way':<9}{numbers}"]
    for row in rows:
        start = f"{row['operation']:<14}{row['batch']:>4} "
        if "status" in row:
            lines.append(start + row["status"])
            continue
        milliseconds = "".join(f"{row['ms'][q]:>10.3f}" for q in ("median", "p20", "p80"))
        lines.append(
            f"{start}{row['mode']:<9}{row['provider']:<9}{milliseconds}{row['tflops']:>10.1f}"
            f"{row['kept_bytes'] / 2**20:>10.1f}{max(row['error'].values()):>10.1e}{row['faster_than_eager']:>10.2f}"
        )
    return lines
