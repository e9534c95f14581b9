"""Images by number, read, decoded and cropped ahead of the encoder."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from erw.prepare.crop import centre_crop
from erw.prepare.decode import Unusable, decode
from erw.prepare.listing import Source
from erw.prepare.recipe import Recipe


@dataclass(kw_only=True)
class Judged:
    """What became of images. ``left_out``: name and reason; ``converted``: how many of which kind."""

    left_out: list[tuple[str, str]] = field(default_factory=list)
    converted: dict[str, int] = field(default_factory=dict)


class Reader:
    """Crops by number, in order, decoded ahead by threads: Pillow decodes and resizes outside Python's lock."""

    def __init__(self, source: Source, recipe: Recipe, threads: int):
        self.source, self.recipe = source, recipe
        self.ahead = 2 * max(recipe.batch, threads)
        self._pool = ThreadPoolExecutor(threads)

    def one(self, number: int) -> tuple[np.ndarray, str | None]:
        """((S, S, 3) uint8, what was converted). Raises `Unusable`."""
        try:
            data = self.source.read(number)
        except OSError as error:
            raise Unusable(f"cannot be read: {error.strerror or error}") from None
        image, converted = decode(data, self.recipe.max_pixels, self.recipe.orient)
        return np.asarray(centre_crop(image, self.recipe.size, self.recipe.max_pixels)), converted

    def __call__(self, numbers: np.ndarray) -> Iterator[tuple[int, np.ndarray | Unusable, str | None]]:
        """(number, crop or reason, what was converted) of ``numbers`` in their order."""
        waiting: list[tuple[int, Future]] = []
        rest = iter(numbers.tolist())
        while True:
            while len(waiting) < self.ahead and (number := next(rest, None)) is not None:
                waiting.append((number, self._pool.submit(self.one, number)))
            if not waiting:
                return
            number, future = waiting.pop(0)
            try:
                yield number, *future.result()
            except Unusable as reason:
                yield number, reason, None


def batches(reader: Reader, numbers: np.ndarray, judged: Judged) -> Iterator[tuple[list[int], Tensor]]:
    """(numbers, (B, 3, S, S) uint8) of the usable images; the others are noted in ``judged``."""
    names, size = reader.source.listing.names, reader.recipe.batch
    kept: list[int] = []
    pixels: list[np.ndarray] = []
    for number, crop, converted in reader(numbers):
        if isinstance(crop, Unusable):
            judged.left_out.append((names[number], str(crop)))
            continue
        if converted:
            judged.converted[converted] = judged.converted.get(converted, 0) + 1
        kept.append(number)
        pixels.append(crop)
        if len(kept) == size:
            yield kept, _tensor(pixels)
            kept, pixels = [], []
    if kept:
        yield kept, _tensor(pixels)


def _tensor(crops: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous()
