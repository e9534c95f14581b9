"""What LightningDiT's extraction wrote: safetensors files of latents.

SOURCE/*.safetensors      latents (n, C, S, S), latents_flip the same of mirrored images, labels (n,)
SOURCE/latents_stats.pt   mean and std (1, C, 1, 1), by which its training normalises: here they are shift and scale
"""

import pickle
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from erw.errors import UserError
from erw.prepare.imports import Columns
from erw.types import StoredLatents

STATISTICS, PIXELS = "latents_stats.pt", 256


class LightningDiTSource:
    """See the module. Rows are named FILE:ROW, since nothing else names them. ``scale``: instead of `latents_stats.pt`."""

    def __init__(self, path: Path, vae: str, scale: float | None = None):
        if not vae:
            raise UserError(f"{path} does not tell what encoded its latents: name it with --vae")
        self.path, self.files = path, sorted(file.name for file in path.glob("*.safetensors"))
        parts = [self._open(name) for name in self.files]
        shape, mirrored = parts[0][0], parts[0][2]
        for name, (other, _, flipped) in zip(self.files, parts, strict=True):
            if (other, flipped) != (shape, mirrored):
                words = " and mirrored ones"
                raise UserError(f"{path / name} holds latents of {other}{words * flipped}, {self.files[0]} of {shape}"
                                f"{words * mirrored}: they are not of one extraction")  # fmt: skip
        self.mirrored, self.labels = mirrored, np.concatenate([labels for _, labels, _ in parts])
        lengths = [len(labels) for _, labels, _ in parts]
        self._starts = np.cumsum([0, *lengths])
        self.names = [f"{name}:{row}" for name, count in zip(self.files, lengths, strict=True) for row in range(count)]
        factor, shift = (scale, 0.0) if scale is not None else _statistics(path / STATISTICS, shape[0])
        self.stored = StoredLatents(
            kind="latents", vae=vae, channels=shape[0], stride=PIXELS // shape[1], scale=factor, shift=shift
        )

    def rows(self, numbers: np.ndarray, mirrored: bool = False) -> Columns:
        """See `Encoded`."""
        owners = np.searchsorted(self._starts, numbers, side="right") - 1
        latents: list[Tensor | None] = [None] * len(numbers)
        for owner in np.unique(owners).tolist():
            places = np.flatnonzero(owners == owner)
            rows = numbers[places] - self._starts[owner]
            for place, row in zip(places.tolist(), self._read(self.files[owner], rows, mirrored), strict=True):
                latents[place] = row
        return {"latents": torch.stack(latents)}

    def _read(self, name: str, rows: np.ndarray, mirrored: bool) -> list[Tensor]:
        try:
            with safe_open(self.path / name, "pt") as file:
                stored = file.get_slice("latents_flip" if mirrored else "latents")
                found = [stored[row : row + 1][0].clone() for row in rows.tolist()]
        except (OSError, SafetensorError) as error:
            raise _unreadable(self.path / name, error) from None
        for row, latent in zip(rows.tolist(), found, strict=True):
            if not latent.isfinite().all():
                raise UserError(f"{self.path / name} holds NaN or infinity in row {row}: extract it again")
        return found

    def _open(self, name: str) -> tuple[tuple[int, ...], np.ndarray, bool]:
        """(shape of a latent, labels, whether there are mirrored ones) of a file."""
        path = self.path / name
        try:
            with safe_open(path, "pt") as file:
                keys = set(file.keys())
                if not {"latents", "labels"} <= keys:
                    raise UserError(f"{path} holds {', '.join(sorted(keys))}: LightningDiT's files hold latents and labels")
                shapes = {key: tuple(file.get_slice(key).get_shape()) for key in keys & {"latents", "latents_flip"}}
                labels = file.get_tensor("labels").long().numpy()
        except (OSError, SafetensorError) as error:
            raise _unreadable(path, error) from None
        shape = shapes["latents"]
        fits = len(shape) == 4 and shape[2] == shape[3] and set(shapes.values()) == {shape} and labels.shape == shape[:1]
        if not fits:
            told = ", ".join(f"{key} {value}" for key, value in sorted(shapes.items()))
            raise UserError(f"{path} holds {told}, labels {labels.shape}: they do not fit together")
        if len(labels) and labels.min() < 0:
            raise UserError(f"{path} has labels below 0")
        return shape[1:], labels, "latents_flip" in keys


def _statistics(file: Path, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(scale, shift) for each channel."""
    try:
        found = torch.load(file, weights_only=True, map_location="cpu")
        mean, std = (found[key].double().flatten() for key in ("mean", "std"))
    except FileNotFoundError:
        raise UserError(f"{file} is missing: it says how the latents are normalised; copy it there, or give --scale") from None
    except (OSError, RuntimeError, pickle.UnpicklingError, KeyError, AttributeError, TypeError, EOFError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:100]
        raise UserError(f"{file} cannot be read ({first}): copy it again, or give --scale") from None
    if len(mean) != channels or len(std) != channels or not (std > 0).all() or not mean.isfinite().all():
        raise UserError(f"{file} holds statistics of {len(mean)} channels, the latents have {channels}; or no valid ones")
    return tuple((1 / std).tolist()), tuple(mean.tolist())


def _unreadable(file: Path, error: Exception) -> UserError:
    return UserError(f"{file} cannot be read ({(str(error).strip().splitlines() or ['?'])[0]}): copy or extract it again")
