"""Attention backends side by side: ``python -m erw.bench.attention``, at head widths 64 and 72 and 256, 257 and 1024 tokens.

For each: whether it can (or why not), relative L2 error against fp64, forward and backward in turn with the others from a
cold L2, and the longest kernel that the profiler saw. ``--write docs/kernels.md`` measures nothing and puts the newest
records into that file.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from erw.bench._attention_table import lines_of, written
from erw.bench._options import device_for, numbers, parser_of
from erw.bench._profile import on_device, profiled
from erw.bench._record import Record
from erw.bench._timing import Deadline, Timing, interleave
from erw.environment import fingerprint
from erw.errors import exits_cleanly
from erw.kernels.attention import BACKENDS, Problem, attention_backend, attention_reference, unusable

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# Seconds that a problem must have left to be begun: nine backends tried, compared and timed.
NEEDED = 30.0
# Samples that are compared with fp64, whose attention matrices are held whole.
_COMPARED = 2


@dataclass(frozen=True)
class Passes:
    """One backend on one problem: forward as in training, and backward of a forward done before."""

    forward: Callable[[], Tensor]
    backward: Callable[[], tuple[Tensor, ...]]

    @classmethod
    def build(cls, name: str, inputs: tuple[Tensor, ...], gradient: Tensor) -> "Passes":
        """``inputs``: q, k, v (B, heads, T, H) with gradients; ``gradient``: that of the output."""
        run = attention_backend(name)
        out = run(*inputs)
        return cls(lambda: run(*inputs), lambda: torch.autograd.grad(out, inputs, gradient, retain_graph=True))


def errors(names: list[str], problem: Problem) -> dict[str, dict[str, float]]:
    """Relative L2 errors of out, dq, dk and dv against fp64 on the same (rounded) inputs, by backend."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        inputs = problem.draw()
        gradient = torch.randn_like(inputs[0])
    wide = [t.detach().double().requires_grad_() for t in inputs]
    out = attention_reference(*wide)
    exact = [out.detach(), *torch.autograd.grad(out, wide, gradient.double())]
    found = {}
    for name in names:
        passes = Passes.build(name, inputs, gradient)
        pairs = zip(("out", "dq", "dk", "dv"), (passes.forward().detach(), *passes.backward()), exact, strict=True)
        found[name] = {part: ((ours.double() - true).norm() / true.norm()).item() for part, ours, true in pairs}
    return found


def longest_kernel(run: Callable[[], object], device: torch.device) -> str | None:
    """The CUDA kernel that took longest in ``run`` (on a CPU: torch's operator); None where the profiler saw none."""
    found = on_device(profiled(run, device), device)
    return max(found, key=lambda part: part[1])[0] if found else None


def measure(problem: Problem, rounds: int, deadline: Deadline) -> list[dict]:
    """A row for each backend."""
    reasons = {name: unusable(name, problem) for name in BACKENDS}
    usable = [name for name, reason in reasons.items() if reason is None]
    wrong = errors(usable, replace(problem, batch=min(problem.batch, _COMPARED)))
    inputs = problem.draw()
    gradient = torch.randn_like(inputs[0])
    passes = {name: Passes.build(name, inputs, gradient) for name in usable}
    timings, kernels = {}, {}
    for way in ("forward", "backward"):
        functions = {name: getattr(p, way) for name, p in passes.items()}
        timings[way] = interleave(functions, device=problem.device, rounds=rounds, warmup=3, flush=True, deadline=deadline)
        kernels[way] = {name: longest_kernel(function, problem.device) for name, function in functions.items()}
    rows = []
    for name, reason in reasons.items():
        row = _named(name, problem) | {"status": "usable" if reason is None else "unusable", "reason": reason}
        if reason is None:
            row |= {"error": wrong[name], "ms": {way: _milliseconds(timings[way][name]) for way in timings}}
            row |= {"kernel": {way: kernels[way][name] for way in kernels}}
        rows.append(row)
    return rows


def _named(name: str, problem: Problem) -> dict:
    return {
        "backend": name,
        "head_width": problem.head_width,
        "tokens": problem.tokens,
        "batch": problem.batch,
        "heads": problem.heads,
        "dtype": str(problem.dtype).removeprefix("torch."),
    }


def _milliseconds(timing: Timing) -> dict[str, float]:
    return {q: getattr(timing, q) * 1e3 for q in ("median", "p20", "p80")}


def run(problems: list[Problem], *, rounds: int, deadline: Deadline, report: Callable[[list[dict]], None]) -> list[dict]:
    """All rows; ``report`` is called with what there is after each problem. Begins nothing that the time is too short for."""
    rows: list[dict] = []
    for problem in problems:
        if deadline.left() < NEEDED:
            late = {"status": "untested", "reason": "out of time"}
            rows += [_named(name, problem) | late for name in BACKENDS]
        else:
            rows += measure(problem, rounds, deadline)
        report(rows)
    return rows


@exits_cleanly
def main(arguments: list[str] | None = None) -> None:
    """Command line. Exit code 2 for a bad option, a missing device, a file without the section."""
    options = _parser().parse_args(arguments)
    if options.write is not None:
        options.write.write_text(written(options.write, Path(options.out), _matrix(options)), encoding="utf-8")
        return
    device = device_for("attention", options.dry_run)
    dtype = DTYPES[options.dtype] if device.type == "cuda" else torch.float32
    batch, heads, rounds = (1, 2, 2) if options.dry_run else (options.batch, options.heads, options.rounds)
    problems = [Problem(batch, heads, tokens, width, dtype, device) for _, width, tokens in _matrix(options)[:: len(BACKENDS)]]
    environment = fingerprint(device, options.commit)
    content = {"what": "attention", "dry_run": options.dry_run, "device_type": device.type, "finished": False}
    content |= {"environment": environment, "rows": []}
    record = Record(Path(options.out), "dry run attention" if options.dry_run else "attention", environment)
    record.write(content)
    deadline = Deadline(options.minutes * 60)
    rows = run(problems, rounds=rounds, deadline=deadline, report=lambda rows: record.write(content | {"rows": rows}))
    record.write(content | {"finished": True, "rows": rows})
    print("\n".join(lines_of(rows)))
    if options.dry_run:
        print("dry run: the times say nothing about speed")
    print(f"record: {record.path}", file=sys.stderr)


def _matrix(options: argparse.Namespace) -> list[tuple[str, int, int]]:
    """(backend, head width, tokens) of every row; all backends of a problem lie together."""
    return [(name, w, t) for w in numbers("--head-dims", options.head_dims) for t in numbers("--tokens", options.tokens)
            for name in BACKENDS]  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("attention", __doc__, minutes=8)
    parser.add_argument("--head-dims", default="64,72", help="head widths (default 64,72: those of L/2 and XL/2)")
    parser.add_argument("--tokens", default="256,257,1024", help="tokens (default 256,257,1024)")
    parser.add_argument("--batch", type=int, default=32, help="samples that are timed (default 32)")
    parser.add_argument("--heads", type=int, default=16, help="heads (default 16, as L/2 and XL/2 have)")
    parser.add_argument("--dtype", default="bf16", choices=list(DTYPES), help="on a GPU (default bf16; a CPU takes fp32)")
    parser.add_argument("--rounds", type=int, default=15, help="measurements of each (default 15)")
    parser.add_argument("--write", type=Path, help="measure nothing: write <!-- attention --> of this file from the records")
    return parser


if __name__ == "__main__":
    main()
