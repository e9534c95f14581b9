"""``erw encoder``."""

from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import torch
from tqdm import tqdm

from erw.commands.parser import Parser
from erw.data import DataConfig, open_dataset
from erw.errors import UserError
from erw.teachers.encoder import PREFIX, write_encoder
from erw.teachers.train_encoder import EncoderConfig, train_encoder


def _parser() -> Parser:
    parser = Parser(
        "encoder",
        description="Train a small encoder on a prepared dataset's images, without labels (SimCLR), for images unlike\nthose "
        "that public encoders know. encoder:FILE then names it wherever a teacher is named. docs/teachers.md",
        epilog="examples:\n  erw prepare my-images --out data/pixels --size 64 --latents pixels\n"
        "  erw encoder data/pixels --out mine.safetensors --epochs 100 --width 128\n"
        "  erw prepare my-images --out data/mine --size 256 --teachers encoder:mine.safetensors",
    )
    parser.add_argument("dataset", metavar="DATASET", help="what erw prepare wrote, with --latents pixels or --images")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the file to write, .safetensors")
    hints = get_type_hints(EncoderConfig)
    for field in fields(EncoderConfig):
        parser.add_argument(f"--{field.name}", type=hints[field.name], default=field.default,
                            help=f"{field.metadata['help']} (default {field.default:g})")  # fmt: skip
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU, if there is one)")
    return parser


def run(arguments: list[str]) -> None:
    """``erw encoder``."""
    options = vars(_parser().parse_args(arguments))
    path, dataset, device = options.pop("out"), options.pop("dataset"), _device(options.pop("device"))
    config = EncoderConfig(**options)
    if path.suffix != ".safetensors" or set(str(path)) & set(",="):
        raise UserError(f"--out {path}: a .safetensors file, no comma or equals sign in its name: teachers are named by it")
    if not path.parent.is_dir():
        raise UserError(f"--out {path}: there is no folder {path.parent}: make it")
    _, _, origin = train_to(path, dataset, config, device)
    print(f"{PREFIX}{path}: {origin.images_seen:,} images, loss {origin.final_loss:.3f}, {origin.training_seconds:.0f} s,"
          f" {origin.training_flops:.2g} FLOPs")  # fmt: skip


def train_to(path: Path, dataset: str, config: EncoderConfig, device: torch.device):
    """Train on ``dataset`` and write ``path``, with a bar on stderr; returns what `train_encoder` does."""
    with tqdm(unit="img", unit_scale=True, dynamic_ncols=True, mininterval=1.0) as bar:

        def after(images: int, planned: int, loss: float | None) -> None:
            bar.total = planned
            if loss is not None:
                bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            bar.update(images - bar.n)

        trained = train_encoder(open_dataset(DataConfig(name="store", path=dataset)), config, device, after)
    write_encoder(path, *trained)
    return trained


def _device(asked: str | None) -> torch.device:
    try:
        device = torch.device(asked or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise UserError(f"--device {asked} is no device: cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and not torch.cuda.is_available()):
        raise UserError(f"--device {asked} is not to be had here: leave it out")
    return device
