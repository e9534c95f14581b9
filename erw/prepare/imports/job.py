"""``erw import-data``: rows that are encoded already become a dataset, a shard at a time, as `erw.prepare.job` does it."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import erw
from erw.data.store import Column, Manifest, read_manifest, rows_per_shard, seal, write_shard
from erw.errors import UserError
from erw.files import lock
from erw.prepare.imports import Encoded, open_encoded
from erw.prepare.outcome import Outcome
from erw.prepare.recipe import DTYPES
from erw.prepare.workplace import Workplace, check_same
from erw.rng import philox


@dataclass(frozen=True, kw_only=True)
class ImportJob:
    """The command's options. ``classes`` 0: as many as the labels say. ``shard`` 0: files of about 128 MiB."""

    source: Path
    out: Path
    vae: str = ""
    scale: float | None = None
    images: bool = False
    dtype: str = "fp16"
    classes: int = 0
    shard: int = 0


def run_import(job: ImportJob) -> Manifest:
    """Write what is missing; a finished dataset is left alone. Raises `UserError` for what cannot be taken over."""
    if job.shard < 0 or job.classes < 0:
        raise UserError("--shard and --classes are 0 (automatic) or more")
    source = open_encoded(job.source, job.vae, job.images, job.scale)
    classes = int(source.labels.max()) + 1
    if job.classes and job.classes < classes:
        raise UserError(f"--classes {job.classes}: labels run to {classes - 1}")
    wanted = _asked(job, source, job.classes or classes)
    if finished := read_manifest(job.out):
        check_same(job.out, finished.facts.get("asked", {}), wanted)
        return finished
    with lock(job.out, "erw import-data"):
        place = Workplace(job.out)
        place.claim(wanted)
        shards = _write(source, place, job)
        facts = {"asked": wanted, "latents": wanted["latents"], "left_out": []}
        manifest = seal(job.out, shards, wanted["classes"], facts=facts)
        place.clear()
    return manifest


def _asked(job: ImportJob, source: Encoded, classes: int) -> dict[str, Any]:
    """All that decides the dataset's bytes."""
    listing = hashlib.sha256("\n".join(source.names).encode("utf-8", "surrogateescape") + source.labels.astype("<i8").tobytes())
    return {
        "source": job.source.name,
        "images": len(source.names),
        "listing_sha256": listing.hexdigest(),
        "latents": json.loads(json.dumps(asdict(source.stored))),
        "with_images": job.images,
        "dtype": job.dtype,
        "classes": classes,
        "shard": job.shard,
        "erw": erw.__version__,
    }


def _write(source: Encoded, place: Workplace, job: ImportJob) -> list[dict[str, Any]]:
    """What the store says of its shards, in order: rows shuffled once, mirrored ones in shards behind the others."""
    order, size = _order(len(source.names)), job.shard or _shard_rows(source, DTYPES[job.dtype])
    count = -(-len(order) // size)
    found: dict[int, dict[str, Any]] = {}
    with tqdm(total=len(order) * (1 + source.mirrored), unit="row", dynamic_ncols=True) as bar:
        for number in range(count * (1 + source.mirrored)):
            mirrored, part = divmod(number, count)
            chosen = order[part * size : (part + 1) * size]
            outcome = place.finished(number)
            if outcome is None:
                outcome = Outcome(number=number, rows=len(chosen))
                outcome.shards.append(_shard(source, place.out, number, chosen, bool(mirrored), DTYPES[job.dtype]))
                outcome = place.note(outcome)
            found[number] = outcome.shards[0]
            bar.update(len(chosen))
    return [found[number] for number in sorted(found)]


def _shard(source: Encoded, out: Path, number: int, chosen: np.ndarray, mirrored: bool, dtype: torch.dtype) -> dict[str, Any]:
    # In the order of the source, which reads fast; the shard's rows are then put in the dataset's.
    ranks = np.argsort(chosen, kind="stable")
    back = torch.from_numpy(np.argsort(ranks, kind="stable"))
    columns = {name: value[back] for name, value in source.rows(chosen[ranks], mirrored).items()}
    columns["latents"] = columns["latents"].to(dtype)
    if not columns["latents"].isfinite().all():
        raise UserError("the latents have values that --dtype fp16 cannot hold: take --dtype bf16 or fp32")
    names = [source.names[row] for row in chosen.tolist()]
    return write_shard(out, number, columns | {"labels": torch.from_numpy(source.labels[chosen]), "names": names})


def _shard_rows(source: Encoded, dtype: torch.dtype) -> int:
    one = source.rows(np.zeros(1, np.int64))
    name = str(dtype).removeprefix("torch.")
    columns = [Column(name="latents", dtype=name, shape=tuple(one["latents"].shape[1:]))]
    if "images" in one:
        columns.append(Column(name="images", dtype="uint8", shape=tuple(one["images"].shape[1:]), group="images"))
    return rows_per_shard(columns)


def _order(count: int) -> np.ndarray:
    """(N,) rows of the source in the dataset's order: shuffled, the same everywhere."""
    index = torch.arange(count)
    zero = torch.zeros_like(index)
    return philox(0, (index, zero, zero, zero))[0].argsort(stable=True).numpy()
