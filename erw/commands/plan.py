"""``erw plan``."""

from dataclasses import replace
from pathlib import Path

from erw.commands.parser import Parser
from erw.data import open_dataset
from erw.errors import UserError
from erw.plan.error import read_error
from erw.plan.forecast import Forecaster
from erw.plan.network import Network
from erw.plan.picture import draw
from erw.plan.rates import RECORDS, rates_of
from erw.plan.report import Costs, disk_of, report, table
from erw.presets import preset
from erw.settings import override

_COUNTS = "1,8,64,256,1024,4096"
_IMAGENET = 1_281_167
_PRICE = 2.0


def _parser() -> Parser:
    parser = Parser(
        "plan",
        description="Memory, time, traffic and cost of a run before it starts. Nothing is trained and no GPU is needed:\n"
        "a step of the real model is traced without data. Speeds are this project's own records of such a GPU where\n"
        "there are any, else data sheets and stated assumptions. Scaling beyond one machine is modelled, not measured.",
        epilog="Every option of training (--section.field VALUE) works too.\n"
        "example:\n  erw plan in256-repa-xl2 --gpus 8 --gpu h200 --zero 2 --table --plot plan.png",
    )
    parser.add_argument("preset", metavar="PRESET")
    parser.add_argument("--gpus", type=int, default=8, help="in all (default 8)")
    parser.add_argument("--gpu", default="h200", help="a100, h100, h800, h200, b200, l40s, 4090 or cpu (default h200)")
    parser.add_argument("--batch", type=int, help="global batch (default: the preset's)")
    parser.add_argument("--zero", type=int, choices=(0, 1, 2, 3), help="ZeRO stage (default: the preset's)")
    parser.add_argument("--per-node", type=int, help="GPUs of one machine (default: 8; cpu: 1)")
    parser.add_argument(
        "--nvlink", type=float, metavar="GB/s", help="of a GPU within its machine, one way (default: data sheet)"
    )
    parser.add_argument(
        "--network", type=float, metavar="GB/s", help="of a machine (default: 50 a GPU, 400 Gbit/s each; assumed)"
    )
    parser.add_argument("--tflops", type=float, help="of large bf16 matmuls (default: measured, or 65%% of the data sheet's)")
    parser.add_argument(
        "--bandwidth", type=float, metavar="GB/s", help="of memory (default: measured, or 80%% of the data sheet's)"
    )
    parser.add_argument("--watts", type=float, help="of a GPU (default: its board power)")
    parser.add_argument("--price", type=float, default=_PRICE, help="of a GPU-hour (default 2.00, an assumption)")
    parser.add_argument("--dataset-images", type=int, help="for the disk (default: ImageNet's 1,281,167; digits their own)")
    parser.add_argument("--table", action="store_true", help="ZeRO stages and numbers of GPUs side by side, Markdown")
    parser.add_argument("--counts", default=_COUNTS, help=f"numbers of GPUs in table and plot (default {_COUNTS})")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="picture of memory and scaling")
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder of measured records (default: bench/results)")
    return parser


def run(arguments: list[str]) -> None:
    """``erw plan``."""
    options, rest = _parser().parse_known_args(arguments)
    for name in ("gpus", "per_node", "batch", "nvlink", "network", "tflops", "bandwidth", "dataset_images"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            raise UserError(f"--{name.replace('_', '-')} must be above 0, not {value:g}")
    config = override(preset(options.preset), rest)
    rates = rates_of(options.gpu, options.records, tflops=options.tflops, gb_per_s=options.bandwidth)
    per_node = options.per_node or rates.per_node
    network = Network(options.gpus, per_node, options.nvlink or rates.link, options.network or 50.0 * per_node)
    if options.zero is not None:
        config = replace(config, engine=replace(config.engine, ds_config=f"zero{options.zero}"))
    forecaster = Forecaster(config, rates)
    batch = options.batch or config.train.batch
    forecast = forecaster.at(network, batch=batch)
    watts = options.watts or rates.watts
    said = f"{watts:g} W a GPU" + " (board power)" * (not options.watts) if watts else "power not known: --watts"
    said += f", {options.price:g} a GPU-hour" + " (assumed)" * (options.price == _PRICE)
    costs = Costs(watts=watts, price=options.price, said=said)
    images = options.dataset_images or (len(open_dataset(config.data)) if config.data.name == "digits" else _IMAGENET)
    print(report(forecast, costs, disk_of(forecast, images), read_error(options.records)))
    counts, stages = _numbers(options.counts), _stages(config.engine.precision)
    if options.table:
        print("\n" + table(forecaster, network, counts, stages, batch, options.price))
    if options.plot:
        title = f"{options.preset} on {options.gpu}, {config.engine.precision}"
        draw(options.plot, forecaster, network, counts, stages, batch, title)
        print(options.plot)


def _stages(precision: str) -> list[str]:
    return [f"zero{stage}" for stage in (0, 1, 2, 3) if stage or precision in ("fp32", "autocast")]


def _numbers(text: str) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = [0]
    if min(counts) < 1:
        raise UserError(f"--counts takes numbers of GPUs with commas between, not '{text}'")
    return counts
