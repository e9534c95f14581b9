"""``erw compare``."""

import json
from pathlib import Path

from erw.commands.parser import Parser
from erw.report.compare import compare, compare_text


def _parser() -> Parser:
    parser = Parser(
        "compare",
        description="Say what differs between two runs: settings, data, seeds, versions and commit, images, results.\n"
        "The exit code is 0 whether or not they differ.",
        epilog="example:\n  erw compare runs/demo/repa runs/demo/erw",
    )
    parser.add_argument("first", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument("second", type=Path, metavar="RUN", help="another")
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")
    return parser


def run(arguments: list[str]) -> None:
    """``erw compare``."""
    options = _parser().parse_args(arguments)
    found = compare(options.first, options.second)
    print(json.dumps(found, indent=1, allow_nan=False) if options.json else compare_text(found))
