"""``erw sample``."""

from dataclasses import fields
from pathlib import Path
from typing import get_args, get_type_hints

from erw.commands.parser import Parser
from erw.engine.ranks import join_ranks, stop_ranks
from erw.sample.job import SampleJob, run_job
from erw.samplers import SampleConfig

_CHOICES = {name: get_args(get_type_hints(SampleJob)[name]) for name in ("weights", "format", "precision")}


def _parser() -> Parser:
    parser = Parser(
        "sample",
        description="Sample images with the EMA weights. The model is rebuilt from the checkpoint alone. Writes\n"
        "samples.png (a grid), samples.npz (arr_0: (N, H, W, C) uint8, labels: (N,)) or a folder of pictures, and\n"
        "manifest.json. Stopped, the same command goes on. Under torchrun, ranks share the work and change no bit.\n"
        "Image i depends on (seed, i), on --batch by rounding only. Options left out are as in the run's settings.",
        epilog="examples:\n  erw sample runs/demo/erw --count 100 --labels balanced\n"
        "  erw sample runs/xl/checkpoints/000102400000 --labels 207,88 --guidance 1.8 --guidance-high 0.7\n"
        "  torchrun --nproc-per-node 8 -m erw.cli sample runs/xl --count 50000 --precision bf16 --compile",
    )
    parser.add_argument(
        "path", type=Path, metavar="RUN_OR_CHECKPOINT", help="a run's folder (its newest checkpoint) or one checkpoint"
    )
    parser.add_argument("--count", type=int, default=64, help="images to sample (default 64)")
    parser.add_argument("--labels", default="balanced", help="balanced (default), random, class numbers such as 207,88, or a"
                        " .npy file of them")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="seed of noise and random labels (default 0)")
    parser.add_argument("--out", type=Path, help="folder to write (default: samples-IMAGES in the run's folder)")
    parser.add_argument("--format", choices=_CHOICES["format"], default="npz", help="npz (default), or a folder of png or"
                        " lossless webp")  # fmt: skip
    parser.add_argument("--batch", type=int, default=64, help="images sampled at once, a rank's unit of work (default 64)")
    parser.add_argument("--weights", choices=_CHOICES["weights"], default="ema", help="ema, or the raw weights")
    parser.add_argument("--precision", choices=_CHOICES["precision"], default="fp32", help="what the network computes in")
    parser.add_argument("--compile", action="store_true", help="torch.compile the blocks")
    for field in fields(SampleConfig):
        options = get_args(get_type_hints(SampleConfig)[field.name])
        kind = {"choices": options} if options else {"type": type(field.default)}
        parser.add_argument(f"--{field.name.replace('_', '-')}", help=field.metadata["help"], **kind)
    return parser


def run(arguments: list[str]) -> None:
    """``erw sample``."""
    options = vars(_parser().parse_args(arguments))
    changes = {field.name: options.pop(field.name) for field in fields(SampleConfig)}
    job = SampleJob(**options, changes={name: value for name, value in changes.items() if value is not None})
    ranks = join_ranks()
    written = run_job(job, ranks)
    if ranks.first:
        print(*reversed(written), sep="\n")
    if ranks.count > 1:
        stop_ranks()
