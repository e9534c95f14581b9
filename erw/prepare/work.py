"""One shard's work: read, crop, encode, write."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from erw.data.store import write_shard
from erw.prepare.encode import Encoder, column_of
from erw.prepare.listing import Source
from erw.prepare.outcome import Outcome
from erw.prepare.reading import Reader, batches
from erw.prepare.recipe import Recipe
from erw.prepare.workplace import Workplace

Rows = list[dict[str, Tensor | list[str]]]


class Worker:
    """``worker(number)`` does all the work of one shard and notes it. Made in the process that uses it.

    ``order``: numbers of the images in the order of the rows. ``advance(n)`` is told of every n images dealt with.
    """

    def __init__(self, source: Source, recipe: Recipe, order: np.ndarray, place: Workplace, readers: int,
                 device: torch.device, advance: Callable[[int], None]):  # fmt: skip
        self.order, self.recipe, self.place, self.advance = order, recipe, place, advance
        self.reader, self.listing = Reader(source, recipe, readers), source.listing
        self.encoder = Encoder(recipe, device)
        self.shards = -(-len(order) // recipe.shard_images)
        self.groups = {f"{column_of(name)}.cls": column_of(name) for name in recipe.teacher.names}

    def __call__(self, number: int) -> Outcome:
        size = self.recipe.shard_images
        outcome = Outcome(number=number, encoder=self.encoder.identity)
        rows, mirrored = self._encoded(self.order[number * size : (number + 1) * size], outcome)
        # Mirrored images lie in shards of their own, far from the images that they mirror.
        for parts, place in ((rows, number), (mirrored, number + self.shards)):
            if parts:
                columns = {name: _joined([part[name] for part in parts]) for name in parts[0]}
                outcome.shards.append(write_shard(self.place.out, place, columns, self.groups))
        return self.place.note(outcome)

    def _encoded(self, numbers: np.ndarray, outcome: Outcome) -> tuple[Rows, Rows]:
        """(rows, mirrored rows) of the usable images, a dict of columns for each batch."""
        rows, mirrored = [], []
        for kept, pixels in batches(self.reader, numbers, outcome):
            labels, names = self.listing.labels[kept], [self.listing.names[number] for number in kept]
            given = {"labels": torch.from_numpy(labels), "names": names}
            rows.append(given | self.encoder(pixels))
            if self.recipe.flips:
                mirrored.append(given | self.encoder(pixels.flip(-1)))
            outcome.rows += len(kept)
            for label in labels.tolist():
                outcome.classes[str(label)] = outcome.classes.get(str(label), 0) + 1
            self.advance(len(kept))
        self.advance(len(outcome.left_out))
        return rows, mirrored


def _joined(parts: list[Tensor] | list[list[str]]) -> Tensor | list[str]:
    return torch.cat(parts) if isinstance(parts[0], Tensor) else [name for part in parts for name in part]
