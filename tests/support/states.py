"""Reading and comparing the state that runs leave in their checkpoints."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from erw.checkpoint import KEYS


def state_at(run: Path, images: int) -> dict[str, dict[str, torch.Tensor]]:
    """All tensors of a run's checkpoint, ``[key][name]``."""
    folder = Path(run) / "checkpoints" / f"{images:012d}"
    return {key: load_file(folder / f"{key}.safetensors") for key in KEYS}


def difference(a: dict, b: dict) -> float:
    """Largest absolute difference between two states; infinite where names differ."""
    if any(a[key].keys() != b[key].keys() for key in KEYS):
        return float("inf")
    return max(float((a[key][n].double() - b[key][n].double()).abs().max()) for key in KEYS for n in a[key])


def relative(a: dict, b: dict) -> float:
    """Largest relative L2 difference of one key's tensors taken together."""
    worst = 0.0
    for key in KEYS:
        assert a[key].keys() == b[key].keys()
        gap = sum(float((a[key][n].double() - b[key][n].double()).square().sum()) for n in a[key])
        size = sum(float(a[key][n].double().square().sum()) for n in a[key])
        worst = max(worst, (gap / size) ** 0.5)
    return worst
