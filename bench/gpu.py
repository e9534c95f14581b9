"""Everything that needs a GPU, in one command and under ten minutes: ``python -m erw.bench.gpu``

Runs the commands below in this order, each in a process of its own (a kernel that hangs or crashes costs its own part only)
with a share of the time, and prints each one's table. Each writes a record of its own as it goes, so a run that is killed
leaves what it measured. ``--parts`` names some of them.

    step        a ladder of training steps from the published one to ours, and the floor of their matmuls
    contract    every kernel against its contract on this device
    sanitizer   compute-sanitizer's memcheck and racecheck over every kernel
    kernels     time and GB/s of every kernel beside plain PyTorch and torch.compile
    attention   attention backends by head width and tokens
"""

import subprocess
import sys
from dataclasses import dataclass

from erw.bench._options import device_for, named, parser_of
from erw.bench._timing import Deadline
from erw.errors import exits_cleanly

# Time for a part to end by itself after its last minute: a measurement that was begun is finished.
_GRACE_SECONDS = 45


@dataclass(frozen=True)
class Part:
    """A command of `erw.bench`; ``share`` of the minutes that are left to the parts from it on."""

    module: str
    share: float
    passes: tuple[str, ...] = ()


PARTS = {
    "step": Part("step", 4.0, ("reference_repo",)),
    "contract": Part("contract", 1.5),
    "sanitizer": Part("sanitizer", 1.0),
    "kernels": Part("kernels", 2.0),
    "attention": Part("attention", 1.0),
}


@exits_cleanly
def main(arguments: list[str] | None = None) -> None:
    """Command line. Exit code 1 where a part failed."""
    parser = parser_of("gpu", __doc__, minutes=9)
    parser.add_argument("--parts", default="", help=f"some of {', '.join(PARTS)} (default all)")
    parser.add_argument("--reference-repo", metavar="PATH", help="checkout of sihyun-yu/REPA, to time its own code too")
    options = parser.parse_args(arguments)
    names = named("--parts", options.parts, PARTS)
    device_for("gpu", options.dry_run)
    deadline, statuses = Deadline(options.minutes * 60), {}
    for number, name in enumerate(names):
        part = PARTS[name]
        seconds = max(0.0, deadline.left()) * part.share / sum(PARTS[rest].share for rest in names[number:])
        print(f"\n== {name} ({seconds / 60:.1f} minutes)", flush=True)
        statuses[name] = run(part, options, seconds)
    print("\n" + "\n".join(f"{name:<10} {status}" for name, status in statuses.items()))
    if any(status != "done" for status in statuses.values()):
        sys.exit(1)


def run(part: Part, options, seconds: float) -> str:
    """Run ``part``; its output goes where ours does. Returns how it ended."""
    command = [sys.executable, "-m", f"erw.bench.{part.module}", "--minutes", f"{seconds / 60:.3f}", "--out", options.out]
    command += ["--commit", options.commit] if options.commit else []
    command += ["--dry-run"] * options.dry_run
    for name in part.passes:
        value = getattr(options, name)
        command += [f"--{name.replace('_', '-')}", value] if value else []
    try:
        code = subprocess.run(command, timeout=seconds + _GRACE_SECONDS + 60 * options.dry_run, check=False).returncode
    except subprocess.TimeoutExpired:
        return "stopped: over its time"
    return "done" if code == 0 else f"ended with exit code {code}"


if __name__ == "__main__":
    main()
