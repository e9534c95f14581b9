"""``erw tune-warmup``."""

from pathlib import Path

from erw.commands.parser import Parser
from erw.options import parse
from erw.probe.report import check_writable, write_report
from erw.tune import report
from erw.tune.pilot import PilotConfig, tune


def _parser() -> Parser:
    parser = Parser(
        "tune-warmup",
        allow_abbrev=False,
        description="Choose the length and depth of ERW's warm-up from a short pilot: trains it alone at a few depths,\n"
        "reads the elbow of the alignment loss, and prints the options to train with. Writes tune-warmup.json, .md and .png.",
        epilog="examples:\n  erw tune-warmup digits-erw\n"
        "  erw tune-warmup in256-erw-xl2 --share 0.1 --depths 3,5,8 --data.path DATA",
    )
    parser.add_argument("preset", help="a preset of ERW; options of train_ds.py may follow")
    parser.add_argument("--out", type=Path, help="folder of the pilot (default: tune-warmup in the run's folder)")
    parser.add_argument("--share", type=float, default=0.4, help="of the run's FLOPs for each depth and seed (default 0.4)")
    parser.add_argument(
        "--depths", type=_whole, default=(), help="with commas between (default: half, whole and half as much again)"
    )
    parser.add_argument("--seeds", type=_whole, default=PilotConfig().seeds, help="of the pilot alone: results need others")
    return parser


def _whole(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


_whole.__name__ = "list of whole numbers"  # what argparse calls it


def run(arguments: list[str]) -> None:
    """``erw tune-warmup``."""
    options, rest = _parser().parse_known_args(arguments)
    config, _ = parse([options.preset, *rest])
    wish = PilotConfig(share=options.share, depths=options.depths, seeds=options.seeds)
    out = options.out or Path(config.train.out) / "tune-warmup"
    check_writable(out)
    from train_ds import stop_ranks, train  # here: deepspeed is slow to import

    record = tune(config, options.preset, wish, out, train)
    stop_ranks()
    text = report.markdown(record)
    print(text)
    print("\n".join(map(str, write_report(record, out, "tune-warmup", text, {"tune-warmup.png": report.figure}))))
