"""Latents that somebody else's scripts encoded, taken over as they are: a kind of source is a file here."""

from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from erw.errors import UserError
from erw.types import StoredLatents

Columns = dict[str, Tensor | list[str]]


class Encoded(Protocol):
    """A source of rows that are encoded already.

    names, labels  (N,) of each row, in the source's order
    stored         what the latents are
    mirrored       whether there is a mirrored copy of each row
    """

    names: list[str]
    labels: np.ndarray
    stored: StoredLatents
    mirrored: bool

    def rows(self, numbers: np.ndarray, mirrored: bool = False) -> Columns:
        """``latents`` as they are in the source, and ``images`` where they were asked for. Raises `UserError` with the name
        of what cannot be read."""
        ...


def open_encoded(path: Path, vae: str = "", images: bool = False, scale: float | None = None) -> Encoded:
    """The source in ``path``: a folder of REPA's scripts or of LightningDiT's. Raises `UserError` for what is neither."""
    from erw.prepare.imports.lightningdit import LightningDiTSource
    from erw.prepare.imports.repa import FEATURES, RepaSource

    if not path.is_dir():
        raise UserError(f"'{path}' is not a folder: name one that REPA's or LightningDiT's scripts wrote")
    if (path / FEATURES).is_dir():
        return RepaSource(path, vae, images, scale)
    if any(path.glob("*.safetensors")):
        if images:
            raise UserError(f"--images: {path} holds LightningDiT's latents and no images: leave it out")
        return LightningDiTSource(path, vae, scale)
    raise UserError(f"{path} has neither a folder {FEATURES} (REPA) nor *.safetensors (LightningDiT): nothing to import")
