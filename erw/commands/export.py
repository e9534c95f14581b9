"""``erw export``."""

from pathlib import Path

from erw.card import Licences
from erw.commands.parser import Parser
from erw.convert import export_public
from erw.errors import UserError
from erw.exported import DTYPES, write_export
from erw.public import CONVENTIONS

_LICENCES = {
    "license": "licence of these weights",
    "data_license": "licence of the training data",
    "teacher_license": "licence of the teacher",
    "vae_license": "licence of the VAE",
}


def _parser() -> Parser:
    parser = Parser(
        "export",
        description="Write a trained model to hand on: a folder of safetensors, settings and a model card, which erw import\n"
        "reads back bit for bit; or, with --to sit, dit or repa, a .pt file for that code.",
        epilog="examples:\n  erw export runs/demo/erw --out exported/erw --license apache-2.0\n"
        "  erw export runs/repa --to repa --out repa.pt",
    )
    parser.add_argument(
        "path", type=Path, metavar="RUN_OR_CHECKPOINT", help="a run's folder (its newest checkpoint) or one checkpoint"
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder to write; with --to sit, dit or repa the file")
    parser.add_argument("--to", choices=("erw", *CONVENTIONS), default="erw", help="whose code shall read it (default erw)")
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="of the weights (default fp32)")
    parser.add_argument("--weights", choices=("ema", "weights"), help="ema (default), or the raw weights")
    for name, text in _LICENCES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", metavar="TEXT", help=f"{text}, for the card (default: not stated)")
    return parser


def run(arguments: list[str]) -> None:
    """``erw export``."""
    options = _parser().parse_args(arguments)
    own = {name: getattr(options, name) for name in ("dtype", "weights", *_LICENCES)}
    given = {name: value for name, value in own.items() if value is not None}
    if options.to != "erw":
        for name in given:
            raise UserError(f"--{name.replace('_', '-')} is for --to erw, not for --to {options.to}: leave it out")
        export_public(options.path, options.to, options.out)
    else:
        stated = {name.removesuffix("license").rstrip("_") or "weights": given[name] for name in _LICENCES if name in given}
        chosen = {name: given[name] for name in ("dtype", "weights") if name in given}
        write_export(options.path, options.out, licences=Licences(**stated), **chosen)
    print(options.out)
