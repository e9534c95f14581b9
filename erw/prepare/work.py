"""One shard's work: read, crop, encode, write."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from erw.data.store import write_shard
from erw.prepare.encode import Encoder
from erw.prepare.outcome import Outcome
from erw.prepare.reading import Reader, batches
from erw.prepare.recipe import Recipe
from erw.prepare.sources import Source
from erw.prepare.workplace import Workplace

Rows = list[dict[str, Tensor]]


class Worker:
    """``worker(number)`` does all the work of one shard and notes it. Made in the process that uses it.

    ``order``: numbers of the images in the order of the rows. ``advance(n)`` is told of every n images dealt with.
    """

    def __init__(self, source: Source, recipe: Recipe, order: np.ndarray, place: Workplace, readers: int,
                 device: torch.device, advance: Callable[[int], None]):  # fmt: skip
        self.order, self.recipe, self.place, self.advance = order, recipe, place, advance
        self.reader, self.labels = Reader(source, recipe, readers), source.listing.labels
        self.encoder = Encoder(recipe, device)
        self.shards = -(-len(order) // recipe.shard)

    def __call__(self, number: int) -> Outcome:
        size = self.recipe.shard
        outcome = Outcome(number=number, encoder=self.encoder.identity)
        rows, mirrored = self._encoded(self.order[number * size : (number + 1) * size], outcome)
        # Mirrored images lie in shards of their own, far from the images that they mirror.
        for parts, place in ((rows, number), (mirrored, number + self.shards)):
            if parts:
                columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
                outcome.shards.append(write_shard(self.place.out, place, columns))
        self.place.note(outcome)
        return outcome

    def _encoded(self, numbers: np.ndarray, outcome: Outcome) -> tuple[Rows, Rows]:
        """(rows, mirrored rows) of the usable images, a dict of columns for each batch."""
        rows, mirrored = [], []
        for kept, pixels in batches(self.reader, numbers, outcome):
            labels = {"labels": torch.from_numpy(self.labels[kept])}
            rows.append(labels | self.encoder(pixels))
            if self.recipe.flips:
                mirrored.append(labels | self.encoder(pixels.flip(-1)))
            outcome.rows += len(kept)
            for label in self.labels[kept].tolist():
                outcome.classes[str(label)] = outcome.classes.get(str(label), 0) + 1
            self.advance(len(kept))
        self.advance(len(outcome.left_out))
        return rows, mirrored
