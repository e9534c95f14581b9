"""How a figure came about: without it nobody can say whether two figures may be compared."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from erw import __version__
from erw.environment import fingerprint, version
from erw.errors import UserError

UNKNOWN = "unknown"
SAMPLING = ("sampler", "steps", "guidance", "labels", "seed", "weights", "checkpoint")
MANIFEST = "manifest.json"
_PACKAGES = ("torchvision", "torch-fidelity", "pillow")


def surroundings(device: torch.device) -> dict[str, Any]:
    """The machine, the date and the versions of all that a figure depends on; None for a package that is not there."""
    return {"erw": __version__, **fingerprint(device), **{name: version(name) for name in _PACKAGES}}


def sampling_record(samples: Path) -> dict[str, Any]:
    """What is known of how ``samples`` (an .npz or a folder) were drawn: the protocol in the manifest.json that ``erw sample``
    left with them, with `SAMPLING` always there and "unknown" where it says nothing.

    Raises `UserError` for a manifest that cannot be read, and for one that says that samples are still missing.
    """
    folders = [samples, samples.parent] if samples.is_dir() else [samples.parent]
    file = next((folder / MANIFEST for folder in folders if (folder / MANIFEST).is_file()), None)
    if file is None:
        return dict.fromkeys(SAMPLING, UNKNOWN)
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        drawn, complete = dict(told["protocol"]), told.get("complete", True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} cannot be read ({error!r}): sample again, or remove it") from None
    if not complete:
        raise UserError(f"{file} says that samples are still missing: give the same erw sample again, it goes on")
    return dict.fromkeys(SAMPLING, UNKNOWN) | drawn


def label_counts(labels: Tensor | None) -> dict[str, int] | str:
    """How many classes there are among ``labels`` (N,), and how often the rarest and the commonest stand there."""
    if labels is None:
        return UNKNOWN
    counts = labels.unique(return_counts=True)[1]
    return {"classes": len(counts), "rarest": int(counts.min()), "commonest": int(counts.max())}
