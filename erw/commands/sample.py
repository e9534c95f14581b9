"""``erw sample``."""

from dataclasses import fields, replace
from pathlib import Path
from typing import get_args, get_type_hints

from erw.checkpoint import locate, read_meta
from erw.commands.parser import Parser
from erw.config import config_from_dict
from erw.errors import UserError
from erw.sample import write_samples
from erw.samplers import SampleConfig


def _parser() -> Parser:
    parser = Parser(
        "sample",
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


def run(arguments: list[str]) -> None:
    """``erw sample``."""
    options = _parser().parse_args(arguments)
    if options.count < 1:
        raise UserError(f"--count must be at least 1, not {options.count}")
    if not options.path.exists():
        raise UserError(f"'{options.path}' does not exist: name a run's folder or a checkpoint")

    changes = {field.name: getattr(options, field.name) for field in fields(SampleConfig)}
    changes = {name: value for name, value in changes.items() if value is not None}
    config = config_from_dict(read_meta(locate(options.path)).config)
    settings = replace(config.sample, **changes)
    folder = write_samples(options.path, options.out, options.count, options.labels, options.seed, options.weights, settings)
    print(folder / "samples.png")
    print(folder / "samples.npz")
