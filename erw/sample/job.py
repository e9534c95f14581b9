"""``erw sample``: any number of images from a checkpoint, on any number of ranks, which a kill does not undo.

    OUT/manifest.json      the protocol; once complete, images per second
        blocks/000000.npy  finished blocks, until samples.npz is whole (npz)
        samples.npz        arr_0 (N, H, W, C) uint8, labels (N,) int64 (npz)
        images/000000.png  a file an image, and labels.npy (png, or webp, lossless)
        samples.png        a grid of the first images

The same command goes on after a kill: finished blocks are kept, whichever rank sampled them.
"""

import json
import math
import platform
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from erw.config import TrainConfig
from erw.engine.ranks import Ranks
from erw.errors import UserError
from erw.files import kept, lock
from erw.latents import latent_space
from erw.sample import manifest
from erw.sample.blocks import Block, BlockSampler, Precision, check_precision, cut
from erw.sample.labels import parse_labels
from erw.sample.load import load_run, read_run
from erw.sample.pictures import grid, to_uint8
from erw.sample.store import Format, Store, open_store
from erw.samplers import SampleConfig


@dataclass(frozen=True, kw_only=True)
class SampleJob:
    """What to sample: the command's options. ``changes`` are those fields of the run's `SampleConfig` that it replaces."""

    path: Path
    out: Path | None = None
    count: int = 64
    labels: str = "balanced"
    seed: int = 0
    weights: Literal["ema", "weights"] = "ema"
    batch: int = 64
    format: Format = "npz"
    precision: Precision = "fp32"
    compile: bool = False
    changes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        for name in ("count", "batch"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1, not {getattr(self, name)}")


def run_job(job: SampleJob, ranks: Ranks) -> tuple[Path, Path]:
    """Sample what is missing and put the whole together. Every rank calls this. Returns the paths of result and grid.

    Raises `UserError` for what cannot be sampled, and for a folder that holds anything but a part of the same images.
    """
    config, _, checkpoint = read_run(job.path)
    settings = replace(config.sample, **job.changes)
    settings.check(config.objective)
    check_precision(job.precision, ranks.device)
    labels = parse_labels(job.labels, job.count, config.model.num_classes, job.seed)
    blocks = cut(job.count, min(job.batch, job.count))
    asked = manifest.protocol(job, checkpoint, len(blocks[0]), labels, settings, config.latents)
    folder = job.out or checkpoint.parent.parent / f"samples-{checkpoint.name}"
    store = open_store(folder, job.format)
    missing, held = _claim(folder, asked, store, blocks, ranks)
    try:
        if missing is not None:
            cost = None
            if missing:
                sampler = _sampler(job, config, settings, checkpoint, labels, ranks.device)
                cost = _sample(sampler, config, store, missing, ranks)
            if ranks.first:
                store.finish(blocks, labels.numpy())
                _draw_grid(store, blocks, folder / "samples.png")
                manifest.write(folder, asked, complete=True, cost=cost)
        if ranks.first:
            store.clear()
        ranks.barrier()
    finally:
        if held is not None:
            held.close()
    return store.result, folder / "samples.png"


def _claim(folder: Path, asked: dict[str, Any], store: Store, blocks: list[Block],
           ranks: Ranks) -> tuple[list[Block] | None, IO[bytes] | None]:  # fmt: skip
    """(blocks to sample, None where all is complete; the first rank's lock). The first rank looks and tells the others."""
    plan, held = {}, None
    if ranks.first:
        try:
            manifest.read(folder)  # before anything is made in a folder that is not ours
            held = lock(folder, "erw sample")
            found = manifest.read(folder)
            if found is None:
                manifest.write(folder, asked, complete=False, cost=None)
            else:
                manifest.check_same(folder, found["protocol"], asked)
            if found is None or not found["complete"] or not store.done(blocks):
                store.begin()
                plan["missing"] = [block.number for block in blocks if not store.has(block)]
        except UserError as error:
            plan["error"] = str(error)
    plan = json.loads(ranks.agree(json.dumps(plan)))
    if "error" in plan:
        if held is not None:
            held.close()
        raise UserError(plan["error"])
    missing = plan.get("missing")
    return (None if missing is None else [blocks[number] for number in missing]), held


def _sampler(job: SampleJob, config: TrainConfig, settings: SampleConfig, checkpoint: Path, labels: torch.Tensor,
             device: torch.device) -> BlockSampler:  # fmt: skip
    _, model, _ = load_run(checkpoint, device, job.weights)
    if job.compile:
        model.compile_blocks(device)
    return BlockSampler(model, config.objective, settings, labels, seed=job.seed, batch=job.batch, precision=job.precision)


def _sample(sampler: BlockSampler, config: TrainConfig, store: Store, missing: list[Block], ranks: Ranks) -> dict[str, Any]:
    """Sample this rank's share of ``missing``, dealt round robin, and wait for the others. Returns what it took."""
    space, started = latent_space(config.latents), time.perf_counter()
    count, total = sum(map(len, missing)), len(sampler.labels)
    with tqdm(total=total, initial=total - count, unit="img", disable=not ranks.first, dynamic_ncols=True) as bar:
        for turn, block in enumerate(missing[ranks.rank :: ranks.count]):
            store.keep(block, to_uint8(sampler.images(block, space)[: len(block)]))
            # The others are about as far.
            bar.update(sum(map(len, missing[turn * ranks.count :][: ranks.count])))
        ranks.barrier()
    seconds, device = time.perf_counter() - started, ranks.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu"
    return {"images": count, "seconds": seconds, "images_per_second": count / seconds, "ranks": ranks.count, "device": name}


def _draw_grid(store: Store, blocks: list[Block], path: Path) -> None:
    """As many of the first images as fill a square, a hundred at most."""
    columns = min(10, math.ceil(math.sqrt(blocks[-1].stop)))
    wanted = columns * columns
    pixels = np.concatenate([store.read(block) for block in blocks if block.start < wanted])[:wanted]
    with kept(path) as file:
        grid(pixels, columns, zoom=max(1, 64 // pixels.shape[1])).save(file, "png")
