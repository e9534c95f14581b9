"""``erw import-data``."""

from pathlib import Path

from erw.commands.parser import Parser
from erw.prepare.imports.job import ImportJob, run_import
from erw.prepare.recipe import DTYPES


def _parser() -> Parser:
    parser = Parser(
        "import-data",
        description="Make a dataset of latents that REPA's scripts (images/, vae-sd/) or LightningDiT's (*.safetensors)\n"
        "encoded, without encoding them again. Files are paired by name, and one without a partner is an error.\n"
        "Stopped, the same command goes on.",
        epilog="examples:\n  erw import-data imagenet256-repa --out data/imagenet256\n"
        "  erw import-data vavae-latents --out data/vavae --vae checkpoints/vavae",
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="folder with vae-sd/ and images/, or with *.safetensors")
    parser.add_argument("--out", type=Path, required=True, metavar="DATASET", help="folder to write the dataset to")
    parser.add_argument("--vae", default="", help="what encoded the latents and decodes samples: hub name or folder"
                        " (REPA's default: stabilityai/sd-vae-ft-mse)")  # fmt: skip
    parser.add_argument("--scale", type=float, help="the model sees latents times this (default: REPA 0.18215; LightningDiT's"
                        " latents_stats.pt)")  # fmt: skip
    parser.add_argument("--images", action="store_true", help="REPA: take the images along, for teachers that run online")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp16", help="what latents are stored in (default fp16)")
    parser.add_argument("--classes", type=int, default=0, help="classes (default: the largest label and one)")
    parser.add_argument("--shard", type=int, default=0, help="rows of a shard (default: files of about 128 MiB)")
    return parser


def run(arguments: list[str]) -> None:
    """``erw import-data``."""
    job = ImportJob(**vars(_parser().parse_args(arguments)))
    manifest = run_import(job)
    print(f"{job.out}: {manifest.rows:,} rows, {manifest.num_classes:,} classes")
