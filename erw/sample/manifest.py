"""``manifest.json``: what decides the images of a folder, so that no others get among them."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import erw
from erw.errors import UserError
from erw.files import json_bytes, kept
from erw.latents import LatentConfig
from erw.samplers import SampleConfig
from erw.settings import to_dict

if TYPE_CHECKING:
    from erw.sample.job import SampleJob

NAME = "manifest.json"


def protocol(job: "SampleJob", checkpoint: Path, batch: int, labels: Tensor, settings: SampleConfig,
             latents: LatentConfig) -> dict[str, Any]:  # fmt: skip
    """All that decides the images, flat, under the command's own names where it has them. ``batch``: as it is used."""
    written = json.loads((checkpoint / "meta.json").read_text(encoding="utf-8"))
    return {
        "checkpoint": written["files"][f"{job.weights}.safetensors"]["sha256"],
        "trained_images": written["images"],
        "weights": job.weights,
        "count": job.count,
        "batch": batch,
        "seed": job.seed,
        "labels": job.labels,
        "labels_sha256": hashlib.sha256(labels.numpy().tobytes()).hexdigest(),
        "format": job.format,
        "precision": job.precision,
        "compile": job.compile,
        **to_dict(settings),
        **{f"latents.{name}": value for name, value in to_dict(latents).items()},
        "erw": erw.__version__,
        "torch": torch.__version__,
    }


def read(folder: Path) -> dict[str, Any] | None:
    """What ``folder`` says of itself; None where it is empty or not there. Raises `UserError` for a folder of other things."""
    file = folder / NAME
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file: name a folder")
    if not file.exists():
        if folder.is_dir() and any(not found.name.startswith(".") for found in folder.iterdir()):
            raise UserError(f"{folder} holds files but no {NAME}, so nothing is written there: name another --out")
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {name: found[name] for name in ("complete", "protocol")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} cannot be read ({error!r}): name another --out") from None


def check_same(folder: Path, found: dict[str, Any], asked: dict[str, Any]) -> None:
    """Raise `UserError` that names the first field in which the folder's protocol differs from what is asked for."""
    for name in (*asked, *found):
        before, now = found.get(name), asked.get(name)
        if before != now:
            raise UserError(
                f"{folder} holds images sampled with {name} {before}, this command has {now}: give the same to go on with"
                " them, or name another --out"
            )


def write(folder: Path, asked: dict[str, Any], *, complete: bool, cost: dict[str, Any] | None) -> None:
    """``cost``: of the last call that sampled, how many images it added, on what and in what time."""
    with kept(folder / NAME) as file:
        file.write(json_bytes({"complete": complete, "sampling": cost, "protocol": asked}))
