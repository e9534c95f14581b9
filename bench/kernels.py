"""How fast the kernels are: ``python -m erw.bench.kernels`` times every operation of `erw.kernels.SPECS` against plain PyTorch
and torch.compile of the same formula, interleaved, with a cold L2, forward, backward and both.

GB/s come from one model of the bytes (`Spec.traffic`) for all three, so they compare like times do; ``copy`` is what this
device copies at, measured in the same run. The functions around matmuls (`erw.kernels.fused`) have a table of their own, in
TFLOP/s and bytes kept. NVIDIA apex joins where it is installed. Writes a record and a picture beside it.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from erw.bench import _pairs
from erw.bench._modes import MODES, modes
from erw.bench._options import device_for, named, parser_of
from erw.bench._pairs import NEEDED, PAIRS
from erw.bench._peaks import measured_peaks
from erw.bench._record import Record
from erw.bench._timing import Deadline, Timing, interleave
from erw.environment import fingerprint
from erw.errors import exits_cleanly
from erw.kernels import SPECS, Case, Spec, apex
from erw.kernels._launch import runs_kernels
from erw.models.sit import SIZES

_APEX = {"adaln_modulate": apex.adaln_modulate, "adamw_ema": apex.adamw_ema}
DTYPES = {"stream": torch.float32, "matmul": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class Trial:
    """One operation at one size: a function to time for each provider and mode."""

    spec: Spec
    case: Case
    functions: dict[str, dict[str, Callable[[], object]]]

    @classmethod
    def build(cls, spec: Spec, case: Case, device: torch.device, compile: bool) -> "Trial":
        """Providers: ``kernel`` and ``apex`` (where they run), ``eager`` and, if asked for, ``compile``."""
        options = next(iter(spec.options.values()))
        made = spec.inputs(case, torch.Generator().manual_seed(0))
        inputs = {
            name: value.to(device, DTYPES[spec.roles[name]] if value.is_floating_point() else value.dtype)
            for name, value in made.items()
        }
        providers = {"eager": spec.reference}
        if runs_kernels(next(iter(inputs.values()))):
            providers = {"kernel": spec.op, **providers}
        if spec.name in _APEX and apex.missing(device) is None:
            providers["apex"] = _APEX[spec.name]
        if compile:
            providers["compile"] = torch.compile(spec.reference, fullgraph=True, dynamic=False)
        if spec.timed is not None:
            timed = {name: {"forward": spec.timed(name, inputs, options)} for name in providers if name != "compile"}
            return cls(spec, case, timed)
        return cls(spec, case, {name: modes(op, spec.grads, inputs, options) for name, op in providers.items()})

    def bytes_of(self, mode: str) -> int:
        """Bytes that the operation must move, whoever does it."""
        forward, backward = self.spec.traffic(self.case, *(DTYPES[r].itemsize for r in ("stream", "matmul")))
        return {"forward": forward, "backward": backward, "both": forward + backward}[mode]


def measure(trial: Trial, device: torch.device, rounds: int, deadline: Deadline, copy: float | None) -> list[dict]:
    """A row for each mode and provider: seconds, GB/s, share of the copy bandwidth, ratio to eager."""
    found = []
    for mode in MODES:
        functions = {name: by_mode[mode] for name, by_mode in trial.functions.items() if mode in by_mode}
        if not functions:
            continue
        timings = interleave(functions, device=device, rounds=rounds, warmup=3, flush=True, deadline=deadline)
        found += [_row(trial, mode, name, timing, timings["eager"], copy) for name, timing in timings.items()]
    return found


def _row(trial: Trial, mode: str, provider: str, timing: Timing, eager: Timing, copy: float | None) -> dict:
    moved = trial.bytes_of(mode)
    speed = moved / timing.median / 1e9
    return {
        "operation": trial.spec.name,
        "batch": trial.case.batch,
        "tokens": trial.case.tokens,
        "width": trial.case.width,
        "mode": mode,
        "provider": provider,
        "ms": {q: getattr(timing, q) * 1e3 for q in ("median", "p20", "p80")},
        "bytes": moved,
        "gb_per_s": speed,
        "of_copy": None if copy is None else speed / copy,
        "faster_than_eager": eager.median / timing.median,
    }


def run(device: torch.device, specs: list[Spec], cases: list[Case], *, rounds: int, deadline: Deadline, compile: bool,
        copy: float | None, report: Callable[[list[dict]], None]) -> list[dict]:  # fmt: skip
    """All rows; ``report`` is called with what there is after each operation. Stops beginning new ones at the deadline."""
    rows: list[dict] = []
    for case in cases:
        for spec in specs:
            if deadline.left() < NEEDED:
                rows.append({"operation": spec.name, "batch": case.batch, "status": "not measured: out of time"})
            else:
                rows += measure(Trial.build(spec, case, device, compile), device, rounds, deadline, copy)
            report(rows)
    return rows


def lines_of(rows: list[dict]) -> list[str]:
    """The rows as a text table."""
    numbers = "".join(f"{name:>9}" for name in ("ms", "p20", "p80", "GB/s", "of copy", "x eager"))
    lines = [f"{'operation':<22}{'B':>4} {'mode':<9}{'provider':<9}{numbers}"]
    for row in rows:
        if "status" in row:
            lines.append(f"{row['operation']:<22}{row['batch']:>4} {row['status']}")
            continue
        share = "-" if row["of_copy"] is None else f"{row['of_copy']:.0%}"
        milliseconds = "".join(f"{row['ms'][q]:>9.3f}" for q in ("median", "p20", "p80"))
        lines.append(
            f"{row['operation']:<22}{row['batch']:>4} {row['mode']:<9}{row['provider']:<9}{milliseconds}"
            f"{row['gb_per_s']:>9.0f}{share:>9}{row['faster_than_eager']:>9.2f}"
        )
    return lines


def draw(rows: list[dict], path: Path) -> None:
    """Bars: GB/s of each provider, an operation a group, one panel a mode, for the largest batch."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    measured = [row for row in rows if "status" not in row]
    largest = max(row["batch"] for row in measured)
    providers = list(dict.fromkeys(row["provider"] for row in measured))
    step = 0.84 / len(providers)
    figure, panels = plt.subplots(1, len(MODES), figsize=(15, 5), layout="constrained", sharey=True)
    for panel, mode in zip(panels, MODES, strict=True):
        here = [row for row in measured if row["mode"] == mode and row["batch"] == largest]
        operations = list(dict.fromkeys(row["operation"] for row in here))
        for shift, provider in enumerate(providers):
            speeds = {row["operation"]: row["gb_per_s"] for row in here if row["provider"] == provider}
            places = [i + (shift - (len(providers) - 1) / 2) * step for i, name in enumerate(operations) if name in speeds]
            panel.barh(places, [speeds[name] for name in operations if name in speeds], height=0.9 * step, label=provider)
        panel.set_yticks(range(len(operations)), operations)
        panel.set(title=f"{mode}, batch {largest}", xlabel="GB/s")
    panels[0].legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


@exits_cleanly
def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    options = _parser().parse_args(arguments)
    device = device_for("kernels", options.dry_run)
    by_name = {spec.name: spec for spec in SPECS} | PAIRS
    wanted = named("--operations", options.operations, by_name)
    _, width, heads = SIZES[options.size]
    batches = [2] if options.dry_run else [int(text) for text in options.batches.split(",")]
    cases = [Case(batch=b, tokens=16 if options.dry_run else 256, width=width, heads=heads) for b in batches]
    environment = fingerprint(device, options.commit)
    peaks = None if options.dry_run else measured_peaks(device, size=8192, copy_mib=2048, rounds=7)
    copy = peaks["copy_gb_per_s"] if peaks else None
    content = {"what": "kernels", "dry_run": options.dry_run, "environment": environment, "measured_peaks": peaks}
    content |= {"apex": apex.missing(device) or "present", "rows": [], "pairs": []}
    record = Record(Path(options.out), "dry-run" if options.dry_run else "kernels", environment)

    def report(part: str, rows: list[dict]) -> None:
        content[part] = rows
        record.write(content)

    shared = {"rounds": 2 if options.dry_run else options.rounds, "deadline": Deadline(options.minutes * 60)}
    shared |= {"compile": not options.dry_run}
    specs = [spec for name in wanted if isinstance(spec := by_name[name], Spec)]
    pairs = [PAIRS[name] for name in wanted if name in PAIRS]
    rows = run(device, specs, cases, copy=copy, report=partial(report, "rows"), **shared)
    pair_rows = _pairs.run(device, pairs, cases, report=partial(report, "pairs"), **shared)
    if any("status" not in row for row in rows):
        draw(rows, record.path.with_suffix(".png"))
    print("\n".join(lines_of(rows) * bool(rows) + _pairs.lines_of(pair_rows) * bool(pair_rows)))
    print(f"apex: {content['apex']}")
    if peaks:
        print(f"copy: {copy:.0f} GB/s")
    print(f"record: {record.path}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("kernels", __doc__, minutes=8)
    parser.add_argument("--operations", default="", help="only these, with commas between")
    parser.add_argument("--size", default="XL", choices=list(SIZES), help="published size whose width is used (default XL)")
    parser.add_argument("--batches", default="256,32", help="batches of 256 tokens (default 256,32)")
    parser.add_argument("--rounds", type=int, default=15, help="measurements of each (default 15)")
    return parser


if __name__ == "__main__":
    main()
