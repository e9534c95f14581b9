"""``erw probe``."""

import argparse
from pathlib import Path

import torch

from erw.checkpoint import locate
from erw.commands.parser import Parser
from erw.config import TrainConfig
from erw.errors import UserError
from erw.presets import PRESETS, preset
from erw.probe import figures, placement_report, tables
from erw.probe.measure import COUNT, TIMES, ProbeConfig, probe
from erw.probe.network import config_of
from erw.probe.placement import PlacementConfig, placement
from erw.probe.report import check_writable, write_report

_PROBING, _PLACING = ("layers", "times", "tokens", "weights", "data", "held_out"), ("blocks", "images", "full_images", "seeds")


def _parser() -> Parser:
    parser = Parser(
        "probe",
        description="Look inside runs or checkpoints: accuracy of a linear probe on each block (semantic gap), CKNNA and\n"
        "linear CKA of each block with a teacher (alignment), and these over a run's checkpoints (progression), beside an\n"
        "untrained network. Writes probe.json, probe.md, semantic-gap.png, alignment.png and progression.png.\n"
        "With --placement: trains short warm-ups of ERW at every range of blocks and writes placement.json, .md and .png.",
        epilog="examples:\n  erw probe runs/demo/sit runs/demo/repa runs/demo/erw --out runs/demo/probe\n"
        "  erw probe runs/xl --layers 4,8,16 --times 0,0.5 --count 2000 --held-out VALIDATION\n"
        "  erw probe --placement digits-erw --placement-seeds 0,1,2",
    )
    whole = "run folders (all their checkpoints) or checkpoints; with --placement a preset or run"
    parser.add_argument("paths", type=Path, nargs="+", metavar="RUN_OR_CHECKPOINT", help=whole)
    parser.add_argument("--teacher", default="", help="teacher to compare with (default: the runs' own)")
    parser.add_argument("--count", type=int, default=COUNT, help=f"images of each split at most (default {COUNT:,})")
    parser.add_argument("--out", type=Path, help="folder to write (default: probe or placement in the first run's folder)")
    parser.add_argument("--layers", type=_whole, help="blocks, from 1, with commas between (default: all)")
    parser.add_argument("--times", type=_numbers, help=f"t, 0 is data (default {','.join(f'{t:g}' for t in TIMES)})")
    parser.add_argument("--tokens", action="store_true", default=None,
                        help="alignment at each token position, averaged, instead of on means over tokens")  # fmt: skip
    parser.add_argument("--weights", choices=("ema", "weights"), help="ema (default), or the raw weights")
    parser.add_argument("--data", type=Path, help="arrays that the runs were trained on, if they were moved")
    parser.add_argument("--held-out", type=Path, help="arrays that they were not trained on")
    group = parser.add_argument_group("placement")
    group.add_argument("--placement", action="store_true", help="which blocks to warm up, instead of looking inside")
    group.add_argument("--placement-blocks", type=int, help="blocks in a range (default 2)")
    group.add_argument("--placement-images", type=int, help="images of a warm-up (default 100 batches)")
    group.add_argument("--placement-full-images", type=int, help="images of the whole model after it (default 200 batches)")
    group.add_argument("--placement-seeds", type=_whole, help="seeds, with commas between (default 0)")
    return parser


def _whole(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


_whole.__name__, _numbers.__name__ = "list of whole numbers", "list of numbers"  # what argparse calls them


def run(arguments: list[str]) -> None:
    """``erw probe``."""
    options = _parser().parse_args(arguments)
    wanted, other = (_PLACING, _PROBING) if options.placement else (_PROBING, _PLACING)
    prefix = {_PLACING: "placement_", _PROBING: ""}
    for name in other:
        if getattr(options, prefix[other] + name) is not None:
            option = f"--{(prefix[other] + name).replace('_', '-')}"
            raise UserError(f"{option} is {'not ' if options.placement else ''}for --placement: leave it out")
    given = {name: getattr(options, prefix[wanted] + name) for name in wanted}
    given = {name: value for name, value in given.items() if value is not None}
    given |= {"teacher": options.teacher, "count": options.count}
    files = _place(options, PlacementConfig(**given)) if options.placement else _look(options, ProbeConfig(**given))
    print("\n".join(map(str, files)))


def _look(options: argparse.Namespace, config: ProbeConfig) -> list[Path]:
    out = options.out or _folder(options.paths[0]) / "probe"
    check_writable(out)
    record = probe(options.paths, config, _device())
    text = tables.markdown(record)
    print(text)
    return write_report(record, out, "probe", text, figures.FIGURES)


def _place(options: argparse.Namespace, wish: PlacementConfig) -> list[Path]:
    if len(options.paths) != 1:
        raise UserError("--placement takes one preset or run")
    config = _settings(options.paths[0])
    out = options.out or Path(config.train.out) / "placement"
    check_writable(out)
    from train_ds import stop_ranks, train  # here: deepspeed is slow to import

    record = placement(config, wish, out, train, _device())
    stop_ranks()
    text = placement_report.markdown(record)
    print(text)
    return write_report(record, out, "placement", text, {"placement.png": placement_report.figure})


def _settings(path: Path) -> TrainConfig:
    """Those of a preset, or of a run's newest checkpoint."""
    if str(path) in PRESETS or not path.exists():
        return preset(str(path))
    return config_of(locate(path))


def _folder(path: Path) -> Path:
    """The run's folder, of a checkpoint's too; the one around a checkpoint that was put elsewhere."""
    if path.parent.name == "checkpoints":
        return path.parent.parent
    return path.parent if (path / "meta.json").exists() else path


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
