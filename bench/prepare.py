"""What each part of ``erw prepare`` buys: ``python -m erw.bench.prepare`` writes a record, ``--write PAGE`` its table.

One change a row, from the way that the papers' scripts go (one image at a time, fp32) to ours, on the same photographs and
the architecture of the papers' autoencoder (sd-vae-ft-ema, 83.7M parameters) with random weights, which are as fast as
trained ones. Timed from the JPEG to the written shard, after a warm-up, by all processes together.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from erw.bench._record import RESULTS
from erw.bench._section import with_section
from erw.bench.evaluators import photographs
from erw.environment import fingerprint
from erw.errors import UserError, exits_cleanly
from erw.files import json_bytes, whole
from erw.prepare.encode import Encoder
from erw.prepare.recipe import Recipe
from erw.prepare.sources import open_source
from erw.prepare.work import Worker
from erw.prepare.workplace import Workplace

RECORD = RESULTS / "prepare.json"
BATCH = 8
WIDTHS = (128, 256, 512, 512)


@dataclass(frozen=True)
class Setup:
    """One row: ``name`` says what changed from the row before. ``threads`` of each process; 0: as many as there are cores."""

    name: str
    batch: int = 1
    readers: int = 1
    precision: str = "fp32"
    channels_last: bool = False
    processes: int = 1


def ladder(processes: int) -> list[Setup]:
    """The rows, in order."""
    rows = [Setup("one image at a time, fp32 (the published way)")]
    changes = [
        (f"+ batches of {BATCH}, images decoded ahead", {"batch": BATCH, "readers": 4}),
        ("+ bf16 (autocast)", {"precision": "bf16"}),
        ("+ channels-last", {"channels_last": True}),
        (f"+ {processes} processes", {"processes": processes}),
    ]
    for name, change in changes:
        rows.append(replace(rows[-1], name=name, **change))
    return rows


def write_vae(folder: Path, widths: tuple[int, ...] = WIDTHS) -> int:
    """An AutoencoderKL of the papers' architecture with random weights in ``folder``. Returns its parameters."""
    from diffusers import AutoencoderKL

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        blocks = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
        vae = AutoencoderKL(block_out_channels=widths, layers_per_block=2, latent_channels=4, norm_num_groups=min(32, *widths),
                            **blocks)  # fmt: skip
    vae.save_pretrained(folder)
    return sum(p.numel() for p in vae.parameters())


def write_images(folder: Path, count: int) -> None:
    """``count`` JPEGs of 400x400 pixels, about ImageNet's mean size."""
    folder.mkdir()
    for i, pixels in enumerate(photographs(400, count).permute(0, 2, 3, 1).numpy()):
        Image.fromarray(pixels).save(folder / f"{i:04d}.jpg", quality=95)


def measure(setup: Setup, images: Path, vae: Path, size: int, out: Path) -> float:
    """Images per second."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(setup.processes), context.SimpleQueue()
    work = partial(_work, setup, images, vae, size, out, barrier, results)
    children = [context.Process(target=work, args=(number,)) for number in range(setup.processes)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    if any(child.exitcode for child in children):
        raise UserError(f"row '{setup.name}': a process ended with {[child.exitcode for child in children]}")
    spans = [results.get() for _ in children]
    count = len(list(images.iterdir()))
    return count / (max(end for _, end in spans) - min(start for start, _ in spans))


def _work(setup: Setup, images: Path, vae: Path, size: int, out: Path, barrier: Any, results: Any, number: int) -> None:
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", number % torch.cuda.device_count()) if cuda else torch.device("cpu")
    torch.set_num_threads(max(1, torch.get_num_threads() // setup.processes))
    source = open_source(images)
    count = len(source.listing.names)
    mine = -(-count // setup.processes)
    recipe = Recipe(size=size, vae=str(vae), batch=setup.batch, precision=setup.precision, shard=mine)
    place = Workplace(out)
    place.folder.mkdir(parents=True, exist_ok=True)
    worker = Worker(source, recipe, np.arange(count), place, setup.readers, device, lambda images: None)
    worker.encoder = Encoder(recipe, device, setup.channels_last)
    worker.encoder(torch.zeros(setup.batch, 3, size, size, dtype=torch.uint8))
    barrier.wait()
    start = time.monotonic()
    worker(number)
    results.put((start, time.monotonic()))


def survey(count: int, size: int, repeats: int, processes: int, widths: tuple[int, ...] = WIDTHS) -> dict[str, Any]:
    """The record: every row ``repeats`` times, the rows in turn."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = ladder(processes)
    found: dict[str, list[float]] = {row.name: [] for row in rows}
    with tempfile.TemporaryDirectory() as folder:
        images, vae = Path(folder) / "images", Path(folder) / "vae"
        write_images(images, count)
        parameters = write_vae(vae, widths)
        for turn in range(repeats):
            for i, row in enumerate(rows):
                found[row.name].append(measure(row, images, vae, size, Path(folder) / f"out-{turn}-{i}"))
                print(f"{row.name}: {found[row.name][-1]:.3g} images/s", flush=True)
    return {
        "what": "prepare",
        "images": count,
        "size": size,
        "parameters": parameters,
        "rows": [{"name": row.name, "images_per_second": found[row.name]} for row in rows],
        "environment": fingerprint(device),
    }


def table(record: dict[str, Any]) -> str:
    """The record as Markdown."""
    lines = ["| | images/s, median | lowest to highest | times the first row | times the row before |", "|---|---|---|---|---|"]
    first = before = None
    for row in record["rows"]:
        speeds = row["images_per_second"]
        median = float(np.median(speeds))
        first, before = first or median, before or median
        lines.append(f"| {row['name']} | {median:.3g} | {min(speeds):.3g} to {max(speeds):.3g} | {median / first:.2f} |"
                     f" {median / before:.2f} |")  # fmt: skip
        before = median
    about, side = record["environment"], record["size"]
    lines.append(
        f"\n{record['images']} photographs of 400x400 pixels to {side}x{side}, {record['parameters'] / 1e6:.1f}M parameters,"
        f" {len(record['rows'][0]['images_per_second'])} runs a row; {about['device']}, {about['cores']} cores, torch"
        f" {about['torch']}. Record: `bench/results/{RECORD.name}`."
    )
    return "\n".join(lines)


@exits_cleanly
def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m erw.bench.prepare", description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=16, help="images a run (default 16)")
    parser.add_argument("--size", type=int, default=256, help="side that they are cropped to (default 256)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each row (default 3)")
    parser.add_argument("--processes", type=int, default=2, help="of the last row (default 2)")
    parser.add_argument("--out", type=Path, default=RECORD, help=f"record (default {RECORD.name} in bench/results)")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="measure nothing: write <!-- prepare --> of this page")
    options = parser.parse_args(arguments)
    if options.write is None:
        if options.count < options.processes * BATCH or options.repeats < 1:
            raise UserError(f"--count must be at least {BATCH} for each of the --processes, --repeats at least 1")
        content = survey(options.count, options.size, options.repeats, options.processes)
        with whole(options.out) as file:
            file.write(json_bytes(content))
        print(table(content))
        return
    try:
        content, text = (json.loads(options.out.read_text(encoding="utf-8")), options.write.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--out {options.out} or --write {options.write} cannot be read: {error}") from None
    options.write.write_text(with_section(text, "prepare", table(content), str(options.write)), encoding="utf-8")


if __name__ == "__main__":
    main()
