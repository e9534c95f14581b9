"""``erw import``."""

from dataclasses import replace
from pathlib import Path

from erw.commands.parser import Parser
from erw.convert import import_public
from erw.errors import UserError
from erw.exported import import_export
from erw.latents import LatentConfig
from erw.public import CONVENTIONS


def _parser() -> Parser:
    parser = Parser(
        "import",
        description="Make a run of a folder that erw export wrote, or of a public SiT, DiT or REPA .pt file, to sample from\n"
        "(erw sample) or to start from (--train.init_from).",
        epilog="examples:\n  erw import exported/erw --out runs/erw\n  erw import SiT-XL-2-256.pt --from sit --out runs/sit",
    )
    parser.add_argument("path", type=Path, metavar="FOLDER_OR_FILE", help="an exported folder, or a .pt file")
    parser.add_argument("--out", type=Path, required=True, help="folder of the new run")
    parser.add_argument("--from", dest="convention", choices=tuple(CONVENTIONS), help="whose code wrote the .pt file")
    parser.add_argument("--num-heads", type=int, help=".pt: attention heads, of a size that was not published")
    parser.add_argument("--latents", choices=("vae", "pixels"), help=".pt: what the model's images are (default vae)")
    parser.add_argument("--vae", help=".pt: AutoencoderKL that decodes them: hub name or local folder")
    return parser


def run(arguments: list[str]) -> None:
    """``erw import``."""
    options = _parser().parse_args(arguments)
    if options.path.is_dir():
        for option, value in (("from", options.convention), ("num-heads", options.num_heads), ("latents", options.latents),
                              ("vae", options.vae)):  # fmt: skip
            if value is not None:
                raise UserError(f"--{option} is for .pt files, and {options.path} is a folder: leave it out")
        print(import_export(options.path, options.out))
        return
    if options.path.suffix == ".safetensors" and (options.path.parent / "config.json").exists():
        raise UserError(f"{options.path} is a part of an exported folder: name the folder {options.path.parent}")
    if not options.path.exists():
        raise UserError(f"'{options.path}' does not exist: name an exported folder or a .pt file")
    if options.convention is None:
        raise UserError(f"{options.path} is a file: say whose code wrote it with --from {', '.join(CONVENTIONS)}")
    latents = LatentConfig(kind=options.latents or "vae")
    latents = replace(latents, vae=options.vae) if options.vae else latents
    print(import_public(options.path, options.convention, options.out, latents, options.num_heads))
