"""compute-sanitizer over one small case of every kernel: ``python -m erw.bench.sanitizer``

memcheck finds accesses out of bounds, racecheck hazards between threads in shared memory. Each tool runs this module once more
with ``--cases``, which calls forward and backward of every operation in fp32 and in mixed dtypes, and judges nothing.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from erw.bench._options import device_for, named, parser_of
from erw.bench._record import Record
from erw.environment import fingerprint
from erw.errors import UserError, exits_cleanly
from erw.kernels import SPECS
from erw.kernels.contract import drawn, outcome, small

TOOLS = ("memcheck", "racecheck")
_SUMMARY = re.compile(r"(?:ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard)")


def run_cases(names: list[str], device: str) -> None:
    """Forward and backward of each operation."""
    for spec in SPECS:
        if spec.name in names:
            for dtypes in ("fp32", "mixed"):
                outcome(spec, spec.op, drawn(spec, small(spec), dtypes, device), next(iter(spec.options.values())))
    if device == "cuda":
        torch.cuda.synchronize()


def found_by(tool: str, program: str, arguments: list[str], seconds: float) -> dict:
    """What ``tool`` says of the cases: findings (None where it did not come to an end) and its last lines."""
    command = [program, "--tool", tool, sys.executable, "-m", "erw.bench.sanitizer", "--cases", *arguments]
    # Torch's cache hides accesses past the end of a tensor.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment, check=False)
    except subprocess.TimeoutExpired:
        return {"tool": tool, "findings": None, "status": "not finished: out of time", "lines": []}
    lines = (done.stdout + done.stderr).strip().splitlines()
    summary = next((match for line in reversed(lines) if (match := _SUMMARY.search(line))), None)
    if summary is None or done.returncode:
        status = f"failed: {lines[-1] if lines else 'no output'}"
        return {"tool": tool, "findings": None, "status": status, "lines": lines[-40:]}
    findings = int(next(filter(None, summary.groups())))
    return {"tool": tool, "findings": findings, "status": "findings" if findings else "clean", "lines": lines[-40:]}


def program() -> str:
    """compute-sanitizer, from the path or the CUDA toolkit. Raises `UserError` where there is none."""
    toolkit = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin" / "compute-sanitizer"
    found = shutil.which("compute-sanitizer") or (str(toolkit) if toolkit.exists() else None)
    if found is None:
        raise UserError("compute-sanitizer is not on the path: it comes with the CUDA toolkit, set CUDA_HOME")
    return found


@exits_cleanly
def main(arguments: list[str] | None = None) -> None:
    """Command line. Exit code 1 where a tool finds something or fails."""
    parser = parser_of("sanitizer", __doc__, minutes=3)
    parser.add_argument("--operations", default="", help="only these, with commas between")
    parser.add_argument("--cases", action="store_true", help="run the cases themselves, as the tools do")
    options = parser.parse_args(arguments)
    names = named("--operations", options.operations, [spec.name for spec in SPECS])
    device = device_for("sanitizer", options.dry_run)
    if options.cases:
        return run_cases(names, device.type)
    given = ["--operations", ",".join(names)] + ["--dry-run"] * options.dry_run
    rows, tool, environment = [], program(), fingerprint(device, options.commit)
    record = Record(Path(options.out), "dry-run" if options.dry_run else "sanitizer", environment)
    for name in TOOLS:
        rows.append(found_by(name, tool, given, options.minutes * 60 / len(TOOLS)))
        record.write({"what": "sanitizer", "dry_run": options.dry_run, "environment": environment, "rows": rows})
    for row in rows:
        print(f"{row['tool']:<10} {row['status']}")
    print(f"record: {record.path}")
    if any(row["status"] != "clean" for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
