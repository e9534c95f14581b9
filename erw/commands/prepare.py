"""``erw prepare``."""

from dataclasses import fields
from pathlib import Path
from typing import get_args, get_type_hints

from erw.commands.parser import Parser
from erw.prepare.job import PrepareJob, Summary, run_job
from erw.prepare.recipe import Recipe


def _parser() -> Parser:
    parser = Parser(
        "prepare",
        description="Crop and encode a set of images once, for training to stream. Images that cannot be used are left out by\n"
        "name and reason in the dataset's manifest. Stopped, the same command goes on; any number of processes leaves the\n"
        "same bytes.",
        epilog="examples:\n  erw prepare my-images --out data/mine --size 256 --teachers dinov2-b\n"
        "  erw prepare ILSVRC2012_img_train.tar --out data/imagenet256 --teachers dinov2-b --precision bf16 --dry-run\n"
        "  erw prepare cifar10.tar.xz --split train --out data/cifar10 --size 32 --latents pixels",
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="a folder by class, a zip or tar (.gz, .bz2, .xz) of one,"
                        " a tar of tars, or a folder of parquet or Arrow files")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="DATASET", help="folder to write the dataset to")
    parser.add_argument("--split", help="sub-folder of the source, or split of the tables, to take")
    hints = get_type_hints(Recipe)
    for field in fields(Recipe):
        name, hint = f"--{field.name.replace('_', '-')}", hints[field.name]
        if hint is bool:
            parser.add_argument(name, action="store_true", help=field.metadata["help"])
            continue
        kind = {"choices": get_args(hint)} if get_args(hint) else {"type": hint}
        parser.add_argument(name, default=field.default, help=f"{field.metadata['help']} (default {field.default})", **kind)
    parser.add_argument("--processes", type=int, default=0, help="processes, a GPU each in turn (default: one a GPU, or one)")
    parser.add_argument("--readers", type=int, default=4, help="threads of each process that read and decode (default 4)")
    parser.add_argument("--max-bad-share", type=float, default=0.001, help="more images left out than this share are an error"
                        " (default 0.001)")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="say images, disk and time, from a short sample; write nothing")
    return parser


def run(arguments: list[str]) -> None:
    """``erw prepare``."""
    options = vars(_parser().parse_args(arguments))
    dry_run = options.pop("dry_run")
    recipe = Recipe(**{field.name: options.pop(field.name) for field in fields(Recipe)})
    job = PrepareJob(**options, recipe=recipe)
    if dry_run:
        from erw.prepare.estimate import estimate
        from erw.prepare.sources import open_source

        print(estimate(open_source(job.source, job.split), job.recipe, job.out, job.readers, job.devices))
        return
    _say(run_job(job))


def _say(summary: Summary) -> None:
    """What was left out or converted, and where the dataset lies."""
    facts = summary.manifest.facts
    for name, reason in facts["left_out"][:10]:
        print(f"left out: {name}: {reason}")
    if len(facts["left_out"]) > 10:
        print(f"left out: {len(facts['left_out']) - 10:,} more, all named in the manifest")
    for kind, count in facts["converted"].items():
        print(f"converted: {count:,} images ({kind})")
    for entry in facts["classes"]:
        if not entry["images"]:
            print(f"class {entry['name']} has no image that can be used: the model will not learn it")
    print(summary.folder)
