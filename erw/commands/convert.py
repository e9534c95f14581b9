"""``erw convert``."""

from dataclasses import replace
from pathlib import Path

from erw.commands.parser import Parser
from erw.convert import export_public, import_public
from erw.errors import UserError
from erw.latents import LatentConfig


def _parser() -> Parser:
    parser = Parser(
        "convert",
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


def run(arguments: list[str]) -> None:
    """``erw convert``."""
    options = _parser().parse_args(arguments)
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
