"""``erw prepare``: a source of images becomes a dataset, a shard at a time.

A shard is a function of the source and the recipe alone, written whole or not at all. So a restart does the missing ones,
and any number of processes leave the same bytes.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from erw.data.store import Manifest, read_manifest, seal
from erw.errors import UserError
from erw.files import lock
from erw.prepare.estimate import check_disk
from erw.prepare.listing import Source
from erw.prepare.manifest import check_share, facts, teacher_entries
from erw.prepare.outcome import Outcome
from erw.prepare.pool import run_inline, run_processes
from erw.prepare.recipe import Recipe, work_order
from erw.prepare.sources import open_source
from erw.prepare.work import Worker
from erw.prepare.workplace import Workplace, asked, check_same


@dataclass(frozen=True, kw_only=True)
class PrepareJob:
    """What to prepare: the command's options. ``processes`` 0: one for each GPU, or one. ``readers``: threads of each
    process that read and decode. ``max_bad_share``: of images left out."""

    source: Path
    out: Path
    split: str | None = None
    processes: int = 0
    readers: int = 4
    max_bad_share: float = 0.001
    recipe: Recipe = field(default_factory=Recipe)

    def __post_init__(self):
        if self.processes < 0 or self.readers < 1:
            raise UserError("--processes must be 0 (automatic) or more, --readers at least 1")
        if not 0 <= self.max_bad_share <= 1:
            raise UserError(f"--max-bad-share is a share from 0 to 1, not {self.max_bad_share:g}")
        if self.out.exists() and not self.out.is_dir():
            raise UserError(f"--out {self.out} is a file: name a folder")
        if self.source.is_dir() and self.out.resolve().is_relative_to(self.source.resolve()):
            raise UserError(f"--out {self.out} lies in the source {self.source}: name a folder outside of it")

    @property
    def devices(self) -> list[torch.device]:
        """A device for each process."""
        if not torch.cuda.is_available():
            return [torch.device("cpu")] * max(1, self.processes)
        count = torch.cuda.device_count()
        return [torch.device("cuda", number % count) for number in range(self.processes or count)]


@dataclass(frozen=True)
class Summary:
    """A dataset's folder and manifest, and how many images this call added to it."""

    folder: Path
    manifest: Manifest
    added: int


def run_job(job: PrepareJob) -> Summary:
    """Prepare what is missing; a finished dataset is left alone.

    Raises `UserError` for what cannot be prepared. Finished shards are kept then, and the same command goes on.
    """
    source = open_source(job.source, job.split)
    wanted = asked(source, job.source, job.split, job.recipe)
    if finished := _finished(job.out, wanted):
        return Summary(job.out, finished, 0)
    with lock(job.out, "erw prepare"):
        place = Workplace(job.out)
        place.claim(wanted)
        source = place.seekable(source)
        order = work_order(source.listing, job.recipe.order == "shuffled")
        outcomes = {n: found for n in range(-(-len(order) // job.recipe.shard_images)) if (found := place.finished(n))}
        added = _add_missing(job, source, order, place, outcomes)
        check_share(place, source.listing, outcomes.values(), job.max_bad_share)
        made = facts(wanted, source.listing, [outcomes[n] for n in sorted(outcomes)])
        shards = sorted((shard for outcome in outcomes.values() for shard in outcome.shards), key=lambda shard: shard["index"])
        manifest = seal(job.out, shards, len(source.listing.classes), teacher_entries(made), made)
        place.clear()
    return Summary(job.out, manifest, added)


def _finished(out: Path, wanted: dict[str, Any]) -> Manifest | None:
    """The manifest of a whole dataset in ``out``, None where there is none. Raises `UserError` for one of other things."""
    found = read_manifest(out)
    if found is not None:
        check_same(out, found.facts.get("asked", {}), wanted)
    return found


def _add_missing(job: PrepareJob, source: Source, order: np.ndarray, place: Workplace, outcomes: dict[int, Outcome]) -> int:
    """Work on the shards that ``outcomes`` lacks and put them there. Returns how many images they hold."""
    missing = [n for n in range(-(-len(order) // job.recipe.shard_images)) if n not in outcomes]
    before = sum(outcome.images for outcome in outcomes.values())
    if not missing:
        return 0
    started = time.perf_counter()
    with tqdm(total=len(order), initial=before, unit="img", dynamic_ncols=True) as bar:
        for outcome in _results(job, source, order, place, missing, bar):
            outcomes[outcome.number] = outcome
            check_share(place, source.listing, outcomes.values(), job.max_bad_share)
            rest = len(order) - sum(found.images for found in outcomes.values())
            check_disk(job.out, outcome.bytes_an_image, rest)
    place.log(len(order) - before, time.perf_counter() - started, job.devices)
    return len(order) - before


def _results(job: PrepareJob, source: Source, order: np.ndarray, place: Workplace, missing: list[int],
             bar: tqdm) -> Iterator[Outcome]:  # fmt: skip
    make = partial(Worker, source, job.recipe, order, place, job.readers)
    if len(job.devices) == 1:
        return run_inline(make, missing, job.devices[0], bar.update)
    return run_processes(make, missing, job.devices, bar.update)
