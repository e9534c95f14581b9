"""One training step as a ladder from the published one to our fastest: ``python -m erw.bench.step``

Each row switches one thing of the row before (`erw.bench._ladder`) and is measured in turn with one anchor row, round by
round, on the same batch of VAE moments, labels and cached teacher features: posterior sample, draws, forward, backward, clip,
AdamW and EMA. The record is rewritten after each row, so a run that is killed leaves what it measured; what the time did not
reach is listed as such. ``--check RECORD`` measures a record's last rung again and fails where it has become slower.
"""

import argparse
import sys
from pathlib import Path

import torch

from erw.bench._ladder import Plan
from erw.bench._largest import largest
from erw.bench._measure import Settings
from erw.bench._options import device_for, numbers, parser_of
from erw.bench._peaks import measured_peaks
from erw.bench._record import Record
from erw.bench._run import Run, jobs
from erw.bench._scene import Scene
from erw.bench._sentry import falls, old_record, scenes_of
from erw.bench._table import lines_of
from erw.bench._timing import Deadline
from erw.bench.published import load_published
from erw.bench.speed import WHAT
from erw.devices import bf16_peak
from erw.environment import fingerprint
from erw.errors import UserError, exits_cleanly
from erw.kernels.attention import BACKENDS


@exits_cleanly
def main(arguments: list[str] | None = None) -> None:
    """Command line. Exit code 1 where a row failed or fell (out of memory and out of time are results), 2 for an option."""
    options = _parser().parse_args(arguments)
    old = _as_recorded(options) if options.check else None
    deadline, device = Deadline(options.minutes * 60), device_for("step", options.dry_run, options.device)
    if options.largest and device.type != "cuda":
        raise UserError("--largest needs a CUDA device: nothing else runs out of memory of its own")
    published = load_published(options.reference_repo, "--reference-repo") if options.reference_repo else None
    plan = _plan(options, device)
    scenes = scenes_of(old, plan) if old else _scenes(options)
    if options.threads:
        torch.set_num_threads(options.threads)
    # The published command trains with --allow-tf32.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    content = _content(options, device)
    record = Record(Path(options.out), "dry-run" if options.dry_run else "step", content["environment"])
    record.write(content)
    content["measured_peaks"] = _peaks(device, options.dry_run)
    record.write(content)
    settings = Settings(device, content["settings"]["rounds"], deadline, published)
    floor_rounds = 0 if old else 2 if options.dry_run else 5  # what is checked does not depend on it
    run = Run(settings, plan, content, record, peak=content["bf16_peak_tflops"],
              copy_gb_per_s=content["measured_peaks"]["copy_gb_per_s"], floor_rounds=floor_rounds)  # fmt: skip
    run(jobs(plan, scenes))
    if options.largest:
        _fill_memory(scenes[0], plan, settings, content, record)
    print("\n".join(lines_of(content)))
    _draw(content, record)
    print(f"record: {record.path}")
    fell = falls(old, content, options.tolerance) if old else []
    print("\n".join(fell), file=sys.stderr, end="\n" if fell else "")
    if fell or any(row["status"].startswith("failed") for scene in content["scenes"] for row in scene["rows"]):
        sys.exit(1)


def _content(options: argparse.Namespace, device: torch.device) -> dict:
    """The record before anything is measured."""
    environment = fingerprint(device, options.commit)
    rounds = 2 if options.dry_run else options.rounds
    given = ("minutes", "attention", "phase", "rows", "compile")
    return {
        "what": WHAT,
        "dry_run": options.dry_run,
        "device_type": device.type,
        "finished": False,
        "environment": environment,
        "settings": {"rounds": rounds, "tf32": True} | {name: getattr(options, name) for name in given},
        "bf16_peak_tflops": bf16_peak(environment["device"]) if device.type == "cuda" else None,
        "measured_peaks": None,
        "scenes": [],
    }


def _peaks(device: torch.device, dry_run: bool) -> dict:
    if dry_run:
        return measured_peaks(device, size=256, copy_mib=8, rounds=2)
    if device.type == "cpu":
        return measured_peaks(device, size=2048, copy_mib=512, rounds=5)
    return measured_peaks(device, size=8192, copy_mib=2048, rounds=7)


def _plan(options: argparse.Namespace, device: torch.device) -> Plan:
    """Which rows there are. Raises `UserError` for an attention backend that is not known."""
    if options.attention not in ("auto", *BACKENDS):
        raise UserError(f"--attention {options.attention} is not known; known: auto, {', '.join(BACKENDS)}")
    on_cuda = device.type == "cuda"
    options.compile = not options.dry_run if options.compile is None else options.compile
    scenes = [] if options.check else _scenes(options)
    return Plan(
        on_cuda=on_cuda,
        without=frozenset() if options.compile else frozenset({"compile"}),
        # On a CPU torch's own is the only one that is worth timing.
        attention=options.attention,
        published=scenes[0].batch if options.reference_repo and scenes else None,
        phase=options.phase,
        rows=options.rows,
        tokens=scenes[0].tokens if scenes else None,
    )


def _scenes(options: argparse.Namespace) -> list[Scene]:
    """What to measure on, the most telling first. Raises `UserError` for a model that is not known or a number that is none."""
    models = ["tiny"] if options.dry_run else options.models.split(",")
    batches = [4, 2] if options.dry_run else numbers("--batches", options.batches)
    tokens = numbers("--tokens", options.tokens) if options.tokens else [None]
    scenes = [Scene(model, batch, count) for count in tokens for batch in batches for model in models]
    for scene in scenes:
        scene.config  # noqa: B018  (raises for what is not known)
    return scenes


def _as_recorded(options: argparse.Namespace) -> dict:
    """The record to check, with the options that decide what is measured taken from it."""
    content = old_record(Path(options.check))
    options.dry_run, options.device = content["dry_run"], content["device_type"]
    options.compile, options.phase = content["settings"]["compile"], content["settings"]["phase"]
    options.attention = content["settings"]["attention"]
    options.rows = "final" if options.rows == "all" else options.rows
    return content


def _fill_memory(scene: Scene, plan: Plan, settings: Settings, content: dict, record: Record) -> None:
    """The largest batch of ``scene``'s references, last rung and recompute rows, those that were measured."""
    rows = [*plan.telling(scene), *(row for row in plan.table(scene) if row.setup.recompute != "none")]
    entries = {entry["name"]: entry for entry in content["scenes"][0]["rows"] if entry["status"] == "measured"}
    for row in rows:
        if row.name in entries:
            entries[row.name]["largest"] = largest(row, scene, settings)
            record.write(content)


def _draw(content: dict, record: Record) -> None:
    """The ladder's picture beside the record."""
    try:
        from erw.bench._ladder_picture import draw_ladder
    except ImportError:
        print("no picture: matplotlib is not installed", file=sys.stderr)
    else:
        draw_ladder(content, record.path.with_suffix(".png"))


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("step", __doc__, minutes=9)
    parser.add_argument("--device", choices=["cuda", "cpu"], help="where to measure (default cuda)")
    parser.add_argument("--threads", type=int, help="torch's threads on a CPU (default: torch's choice)")
    parser.add_argument("--models", default="XL/2,B/2", help="published sizes with commas between (default XL/2,B/2)")
    parser.add_argument("--batches", default="256,32", help="images a step, with commas between (default 256,32)")
    parser.add_argument("--tokens", help="an image's, with commas between: 1024 is 512 px (default the model's own, 256)")
    parser.add_argument("--phase", choices=["full", "warmup", "both"], default="both", help="of ERW (default both)")
    parser.add_argument("--rows", choices=["all", "telling", "final"], default="all",
                        help="all; telling: references and the last rung; final: the anchor and the last rung")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=9, help="measurements of each row (default 9)")
    parser.add_argument("--attention", default="auto", help="backend of that rung (default auto: the fastest here)")
    parser.add_argument("--reference-repo", metavar="PATH", help="checkout of sihyun-yu/REPA, to time its own code too")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="compiled rows (not in a dry run)")
    parser.add_argument("--largest", action="store_true", help="then find the largest batch that fits, on a GPU")
    parser.add_argument("--check", metavar="RECORD", help="measure its last rung again; fail where that fell")
    parser.add_argument("--tolerance", type=float, default=0.1, help="share by which a ratio may fall (default 0.1)")
    return parser


if __name__ == "__main__":
    main()
