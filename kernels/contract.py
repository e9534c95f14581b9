"""The contract of a kernel: its outputs and gradients against an fp64 reference, to within what rounding explains.

fp32 tensors: error at most twice that of plain PyTorch in fp32, plus 4 eps of the largest value. bf16 and fp16 tensors:
relative L2 error at most 1.1 times that of rounding the fp64 result once (1.5 for sums over tokens). Triton's interpreter
cuts bf16 off instead of rounding it: there, 1 ulp for every element. Rows of different kinds (see `telling_rows`) are
judged apart, so that large ones do not hide small ones.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from erw.kernels._launch import INTERPRETED
from erw.kernels._spec import Case, Spec

DTYPES = {
    "fp32": {"stream": torch.float32, "matmul": torch.float32},
    "bf16": {"stream": torch.bfloat16, "matmul": torch.bfloat16},
    "fp16": {"stream": torch.float16, "matmul": torch.float16},
    "mixed": {"stream": torch.float32, "matmul": torch.bfloat16},
    "mixed-fp16": {"stream": torch.float32, "matmul": torch.float16},
}
KINDS = 3


CASES = (
    Case(batch=2, tokens=64, width=384, heads=6),
    Case(batch=1, tokens=257, width=72, heads=1),
    Case(batch=3, tokens=1, width=96, heads=2),
    Case(batch=2, tokens=17, width=1152, heads=16),
)
LARGE = (Case(batch=1, tokens=1024, width=1152, heads=16), Case(batch=2, tokens=256, width=4096, heads=32))


@dataclass(frozen=True)
class Check:
    """A tensor's error and what the contract allows."""

    tensor: str
    error: float
    limit: float

    @property
    def broken(self) -> bool:
        """Whether the contract is."""
        return not self.error <= self.limit

    def __str__(self) -> str:
        return f"{self.tensor}: {self.error:.3g} exceeds {self.limit:.3g}"


def sizes(spec: Spec, device: str) -> tuple[Case, ...]:
    """What the contract is tried with: large ones too, where a device does the work."""
    return (*spec.sizes(CASES), *(LARGE if device == "cuda" else ()))


def small(spec: Spec) -> Case:
    """A size at which the interpreter is quick, and tiles are not full."""
    return Case(batch=2, tokens=18, width=72, heads=1) if spec.common else spec.cases[0]


def variants(spec: Spec, device: str) -> list[tuple[str, str]]:
    """(variant, dtypes) to try: all of them; on a CPU, where the interpreter does the work, further variants in two dtypes."""
    return [
        (name, dtypes)
        for number, name in enumerate(spec.options)
        for dtypes in (DTYPES if number == 0 or device == "cuda" else ("fp32", "mixed"))
    ]


def drawn(spec: Spec, case: Case, dtypes: str, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
    """The operation's inputs in the dtypes of their roles."""
    roles = DTYPES[dtypes] | {"float32": torch.float32}
    made = spec.inputs(case, torch.Generator().manual_seed(seed))
    return {
        name: value.to(device, roles[spec.roles[name]] if value.is_floating_point() else value.dtype)
        for name, value in made.items()
    }


def outcome(spec: Spec, op, inputs: dict[str, Tensor], options: dict, wide: torch.dtype | None = None) -> dict[str, Tensor]:
    """Outputs (``out0``, ...) and gradients (by argument) of one call; ``wide`` casts the inputs first."""
    cast = {n: (t.to(wide) if wide and t.is_floating_point() else t).detach() for n, t in inputs.items()}
    for name in spec.grads:
        if name in cast:
            cast[name].requires_grad_()
    returned = op(**cast | {n: option(cast) if callable(option) else option for n, option in options.items()})
    outputs = [out for out in (returned if isinstance(returned, tuple) else (returned,)) if out is not None]
    found = {f"out{i}": out.detach() for i, out in enumerate(outputs)}
    if spec.grads:
        weighted = [(out, _weights(out, i)) for i, out in enumerate(outputs) if out.requires_grad]
        names = [name for name in spec.grads if name in cast]
        gradients = torch.autograd.grad(
            [out for out, _ in weighted], [cast[n] for n in names], [w.to(out.dtype) for out, w in weighted], allow_unused=True
        )
        found |= {n: g for n, g in zip(names, gradients, strict=True) if g is not None}
    return found


def _weights(out: Tensor, number: int) -> Tensor:
    """The output's gradient, the same for every dtype of it: values that bf16 and fp16 hold exactly."""
    generator = torch.Generator().manual_seed(100 + number)
    return (torch.randint(-8, 9, out.shape, generator=generator) / 8).to(out.device)


def faults(spec: Spec, case: Case, dtypes: str, options: dict, device: str = "cpu", op=None) -> list[Check]:
    """Everything that breaks the contract; empty for a good kernel."""
    return [check for check in checks(spec, case, dtypes, options, device, op) if check.broken]


def broken(case: Case, dtypes: str, device: str) -> list[str]:
    """Of every operation, in a line, what breaks the contract in its first variant, or why it cannot run; empty: none."""
    from erw.kernels import SPECS

    found = []
    for spec in SPECS:
        try:
            found += [
                f"{spec.name}: {fault}" for fault in faults(spec, case, dtypes, next(iter(spec.options.values())), device)
            ]
        except Exception as error:  # whatever compiling and launching raise
            found.append(f"{spec.name}: {(str(error).strip().splitlines() or [type(error).__name__])[0]}")
    return found


def checks(spec: Spec, case: Case, dtypes: str, options: dict, device: str = "cpu", op=None) -> list[Check]:
    """Each output and gradient, rows of each kind apart. ``op`` stands in for the operation's own."""
    inputs = drawn(spec, case, dtypes, device)
    exact = outcome(spec, spec.reference, inputs, options, torch.float64)
    plain = outcome(spec, spec.reference, inputs, options)
    found = outcome(spec, op or spec.op, inputs, options)
    if found.keys() != exact.keys():
        return [Check(f"tensors {sorted(found)} instead of {sorted(exact)}", float("inf"), 0.0)]
    done = []
    for name, value in found.items():
        if value.shape != exact[name].shape or value.dtype != plain[name].dtype:
            done.append(Check(f"{name} {tuple(value.shape)} {value.dtype}", float("inf"), 0.0))
            continue
        loose = name in spec.reduces
        for kind, (ours, true, torchs) in enumerate(
            zip(*(_by_kind(t, spec.rows.get(name)) for t in (value, exact[name], plain[name])), strict=True)
        ):
            if ours.numel():
                done.append(_judge(f"{name}[kind {kind}]", ours, true, torchs, loose))
    return done


def _by_kind(tensor: Tensor, order: tuple[int, ...] | None) -> list[Tensor]:
    """Rows (..., D) of each kind, or the whole tensor where it has no rows of kinds."""
    if tensor.dim() < 3:
        return [tensor]
    tensor = tensor.permute(order) if order else tensor
    rows = tensor.reshape(-1, tensor.shape[-1])
    return [rows[kind::KINDS] for kind in range(KINDS)]


def _judge(name: str, ours: Tensor, exact: Tensor, plain: Tensor, loose: bool) -> Check:
    if not ours.isfinite().all():
        return Check(f"{name} is not finite", float("inf"), 0.0)
    error = (ours.double() - exact).abs()
    if ours.dtype == torch.float32:
        eps = torch.finfo(torch.float32).eps
        allowed = 2 * float((plain.double() - exact).abs().max()) + 4 * eps * float(exact.abs().max())
        return Check(name, float(error.max()), allowed)
    if INTERPRETED and ours.dtype == torch.bfloat16:
        ulp = torch.finfo(torch.bfloat16).eps * exact.abs() * (2 if loose else 1)
        # Where sums cancel, fp32's own rounding shows.
        slack = 1e-5 * float(exact.abs().max())
        return Check(name, float((error / (ulp + slack).clamp(min=1e-300)).max()), 1.0)
    once = float((exact.to(ours.dtype).double() - exact).norm())
    allowed = (1.5 if loose else 1.1) * once + 4 * torch.finfo(torch.float32).eps * float(exact.norm())
    return Check(name, float(error.norm()), allowed)
