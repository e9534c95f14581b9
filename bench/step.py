"""Our training step against the published one, in one command and under ten minutes: ``python -m erw.bench.step``

Every pairing measures a rival and ours in turn, round by round, on the same batch of VAE moments, labels and cached
teacher features: posterior sample, draws, forward, backward, clip, AdamW and EMA. The record is rewritten after each
pairing, so a run that is killed leaves what it measured; what the time did not reach is listed as such.
"""

import argparse
import sys
from pathlib import Path

import torch

from erw.bench._contest import Pairing, plan, shape_of
from erw.bench._env import fingerprint
from erw.bench._measure import OUT_OF_MEMORY, Settings, measure
from erw.bench._options import device_for, parser_of
from erw.bench._peaks import bf16_peak, measured_peaks
from erw.bench._record import Record
from erw.bench._table import lines_of
from erw.bench._timing import Deadline
from erw.bench.published import load_published
from erw.errors import UserError, exits_cleanly
from erw.ops import resolve


@exits_cleanly
def main(arguments: list[str] | None = None) -> None:
    """Command line. Exit code 1 where a pairing failed (out of memory and out of time are results), 2 for an option."""
    options = _parser().parse_args(arguments)
    deadline, device = Deadline(options.minutes * 60), device_for("step", options.dry_run)
    published = load_published(options.reference_repo, "--reference-repo") if options.reference_repo else None
    pairings = _plan(options, device)
    # The published command trains with --allow-tf32.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    environment = fingerprint(device, options.commit)
    peak = bf16_peak(environment["device"]) if device.type == "cuda" else None
    rounds = 2 if options.dry_run else options.rounds
    settings = Settings(device, rounds, deadline, peak, published, resolve(options.ops))
    content = {
        "what": "training step, ours against the published one",
        "dry_run": options.dry_run,
        "finished": False,
        "environment": environment,
        "settings": {"rounds": rounds, "minutes": options.minutes, "ops": options.ops, "tf32": True},
        "bf16_peak_tflops": peak,
        "measured_peaks": None,
        "pairings": [],
    }
    record = Record(Path(options.out), "dry-run" if options.dry_run else "step", environment)
    record.write(content)
    content["measured_peaks"] = _peaks(device, options.dry_run)
    record.write(content)
    _run(pairings, settings, content, record)
    print("\n".join(lines_of(content)))
    print(f"record: {record.path}")
    statuses = [row["status"] for pairing in content["pairings"] for row in pairing["rows"]]
    if any(status.startswith("failed") for status in statuses):
        sys.exit(1)


def _run(pairings: list[Pairing], settings: Settings, content: dict, record: Record) -> None:
    """Measure all of ``pairings``; one that does not fit is followed by the same at half its batch."""
    waiting = list(pairings)
    while waiting:
        pairing = waiting.pop(0)
        found = measure(pairing, settings)
        content["pairings"].append(found)
        content["finished"] = not waiting
        if any(row["status"] == OUT_OF_MEMORY for row in found["rows"]) and pairing.batch > 1:
            half = pairing.halved()
            if half not in pairings and half not in waiting:
                waiting.insert(0, half)
                content["finished"] = False
        record.write(content)
        seen = ", ".join(f"{row['contestant']}: {row['status']}" for row in found["rows"])
        print(f"{pairing.model} batch {pairing.batch}: {seen}", file=sys.stderr, flush=True)


def _peaks(device: torch.device, dry_run: bool) -> dict:
    if dry_run:
        return measured_peaks(device, size=256, copy_mib=8, rounds=2)
    return measured_peaks(device, size=8192, copy_mib=2048, rounds=7)


def _plan(options: argparse.Namespace, device: torch.device) -> list[Pairing]:
    """What to measure. Raises `UserError` for a model that is not known or a batch below 1."""
    models = ["tiny"] if options.dry_run else options.models.split(",")
    for model in models:
        shape_of(model)
    try:
        batches = [4, 2] if options.dry_run else [int(text) for text in options.batches.split(",")]
    except ValueError:
        raise UserError(f"--batches takes whole numbers with commas between, not '{options.batches}'") from None
    if min(batches) < 1:
        raise UserError(f"--batches must be at least 1, not {min(batches)}")
    compile = not options.dry_run if options.compile is None else options.compile
    published = ("fp16" if device.type == "cuda" else "bf16") if options.reference_repo else None
    return plan(models, batches, compile=compile, published=published)


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("step", __doc__, minutes=9)
    parser.add_argument("--models", default="XL/2,B/2", help="published sizes with commas between (default XL/2,B/2)")
    parser.add_argument("--batches", default="256,32", help="images a step, with commas between (default 256,32)")
    parser.add_argument("--rounds", type=int, default=9, help="measurements of each side (default 9)")
    parser.add_argument("--engine.ops", dest="ops", default="reference", help="op set of ours (default reference)")
    parser.add_argument("--reference-repo", metavar="PATH", help="checkout of sihyun-yu/REPA, to time its own code too")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=None, help="compiled pairings (not in a dry run)"
    )
    return parser


if __name__ == "__main__":
    main()
