"""The installed command ``erw``: train, sample and convert. A new subcommand is one entry in ``COMMANDS``."""

import argparse
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import get_args, get_type_hints

from erw import __version__
from erw.errors import UserError, exits_cleanly
from erw.settings import formatter

TRAIN = "train a preset: erw train PRESET [--section.field VALUE ...]; the same as python train_ds.py"
SAMPLE = "sample images from a run or a checkpoint: erw sample runs/demo/erw --count 64"
CONVERT = "a .pt file of SiT, DiT or REPA to a run, or back: erw convert FILE.pt --convention sit --out runs/sit"


def train(arguments: list[str]) -> None:
    """``erw train``."""
    import train_ds

    train_ds.main(arguments)


def _sample_parser() -> argparse.ArgumentParser:
    from erw.samplers import SampleConfig

    parser = _Parser(
        prog="erw sample",
        formatter_class=formatter,
        description="Sample images with the EMA weights. The model is rebuilt from the checkpoint alone. Writes\n"
        "samples.png (a grid) and samples.npz (arr_0: (N, H, W, C) uint8, labels: (N,)).\n"
        "Image i depends on (seed, i), not on the batch. Options left out are as in the run's settings.",
        epilog="examples:\n  erw sample runs/demo/erw --count 100 --labels balanced\n"
        "  erw sample runs/xl/checkpoints/000102400000 --labels 207,88 --guidance 1.8 --guidance-high 0.7",
    )
    parser.add_argument(
        "path", type=Path, metavar="RUN_OR_CHECKPOINT", help="a run's folder (its newest checkpoint) or one checkpoint"
    )
    parser.add_argument("--count", type=int, default=64, help="images to sample (default 64)")
    parser.add_argument("--labels", default="balanced", help="balanced (default), random, or class numbers such as 207,88")
    parser.add_argument("--seed", type=int, default=0, help="seed of noise and random labels (default 0)")
    parser.add_argument("--out", type=Path, help="folder to write (default: samples-IMAGES in the run's folder)")
    parser.add_argument("--weights", choices=("ema", "weights"), default="ema", help="ema, or the raw weights")
    for field in fields(SampleConfig):
        options = get_args(get_type_hints(SampleConfig)[field.name])
        kind = {"choices": options} if options else {"type": type(field.default)}
        parser.add_argument(f"--{field.name.replace('_', '-')}", help=field.metadata["help"], **kind)
    return parser


class _Parser(argparse.ArgumentParser):
    """argparse that reports a mistake in one line."""

    def error(self, message: str) -> None:
        raise UserError(f"{message} ({self.prog} --help)")


def sample(arguments: list[str]) -> None:
    """``erw sample``."""
    options = _sample_parser().parse_args(arguments)
    if options.count < 1:
        raise UserError(f"--count must be at least 1, not {options.count}")
    if not options.path.exists():
        raise UserError(f"'{options.path}' does not exist: name a run's folder or a checkpoint")
    from erw.checkpoint import locate, read_meta
    from erw.config import config_from_dict
    from erw.sample import write_samples
    from erw.samplers import SampleConfig

    changes = {field.name: getattr(options, field.name) for field in fields(SampleConfig)}
    changes = {name: value for name, value in changes.items() if value is not None}
    config = config_from_dict(read_meta(locate(options.path)).config)
    settings = replace(config.sample, **changes)
    folder = write_samples(options.path, options.out, options.count, options.labels, options.seed, options.weights, settings)
    print(folder / "samples.png")
    print(folder / "samples.npz")


def _convert_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="erw convert",
        formatter_class=formatter,
        description="Make a run of a public checkpoint, to sample from (erw sample) or to start from (--train.init_from);\n"
        "or write a run's EMA weights as such a file.",
        epilog="examples:\n  erw convert SiT-XL-2-256.pt --convention sit --out runs/sit\n"
        "  erw convert runs/repa --to repa --out repa.pt",
    )
    parser.add_argument("path", type=Path, metavar="FILE_OR_RUN", help="a .pt file; with --to a run or a checkpoint")
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--convention", help="whose code wrote the file: sit, dit or repa")
    way.add_argument("--to", help="whose code shall read the file: sit, dit or repa")
    parser.add_argument("--out", type=Path, required=True, help="folder of the new run; with --to the file to write")
    parser.add_argument("--num-heads", type=int, help="attention heads, of a size that was not published")
    parser.add_argument("--latents", choices=("vae", "pixels"), help="what the model's images are (default vae)")
    parser.add_argument("--vae", help="AutoencoderKL that decodes them: hub name or local folder")
    return parser


def convert(arguments: list[str]) -> None:
    """``erw convert``."""
    options = _convert_parser().parse_args(arguments)
    from erw.convert import export_public, import_public
    from erw.latents import LatentConfig

    if options.to is not None:
        for name in ("num_heads", "latents", "vae"):
            if getattr(options, name) is not None:
                raise UserError(f"--{name.replace('_', '-')} is for --convention, not for --to: leave it out")
        export_public(options.path, options.to, options.out)
        print(options.out)
        return
    latents = LatentConfig(kind=options.latents or "vae")
    latents = replace(latents, vae=options.vae) if options.vae else latents
    print(import_public(options.path, options.convention, options.out, latents, options.num_heads))


COMMANDS = {"train": (train, TRAIN), "sample": (sample, SAMPLE), "convert": (convert, CONVERT)}


@exits_cleanly
def main(arguments: list[str] | None = None) -> None:
    """Dispatch to a subcommand."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"erw {__version__}: diffusion transformers with representation alignment\n")
        print("\n".join(f"  erw {name:<8} {text}" for name, (_, text) in COMMANDS.items()))
        print("\nerw COMMAND --help says more.")
        sys.exit(0 if arguments else 2)
    if arguments[0] == "--version":
        print(__version__)
        return
    if arguments[0] not in COMMANDS:
        raise UserError(f"'{arguments[0]}' is not a command; known: {', '.join(COMMANDS)}")
    COMMANDS[arguments[0]][0](arguments[1:])


if __name__ == "__main__":
    main()
