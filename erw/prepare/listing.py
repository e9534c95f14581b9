"""What a source of images holds, and what it is for whoever reads it."""

import hashlib
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

# What is taken for an image by its name; anything else is listed as another file and judged no further.
SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pnm", ".jp2", ".avif", ".tga")
)
SPLITS = {"train", "training", "val", "valid", "validation", "test"}
ONE_CLASS = "images"  # the class of images that lie in no class folder because there is none


@dataclass(kw_only=True)
class Listing:
    """What a source holds. N images in the order of their names.

    names, labels  (N,) of each image; labels index ``classes``
    sizes          (N,) bytes of each file, 0 where a table does not say
    blocks         lengths of runs of images that are read together (a table's row groups); empty: each for itself
    left_out       (name, reason) of images that cannot be used, seen from here
    others         names of files that are no images
    """

    classes: list[str]
    names: list[str]
    labels: np.ndarray
    sizes: np.ndarray
    blocks: list[int] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    @property
    def digest(self) -> str:
        """SHA-256 of names, labels and sizes: whether a restart finds what it left."""
        found = hashlib.sha256("\n".join([*self.classes, "", *self.names]).encode("utf-8", "surrogateescape"))
        for array in (self.labels, self.sizes):
            found.update(array.astype("<i8").tobytes())
        return found.hexdigest()


class Source(Protocol):
    """``read(number)`` gives the bytes of an image's file. Raises OSError where it cannot be read."""

    listing: Listing

    def read(self, number: int) -> bytes: ...
