"""``erw report``."""

from pathlib import Path

from erw.commands.parser import Parser
from erw.report.page import write_report


def _parser() -> Parser:
    parser = Parser(
        "report",
        description="Write one page of HTML about one or more runs: what differs, evaluations, samples, curves, costs.\n"
        "It holds its pictures and loads nothing. Sample grids are those that erw sample left in the runs' folders.",
        epilog="example:\n  erw report runs/demo/sit runs/demo/repa runs/demo/erw --out report.html",
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run's folder")
    parser.add_argument("--out", type=Path, required=True, help="the file to write, .html")
    return parser


def run(arguments: list[str]) -> None:
    """``erw report``."""
    options = _parser().parse_args(arguments)
    write_report(options.runs, options.out)
    print(options.out)
