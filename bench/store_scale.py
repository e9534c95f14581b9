"""The store at ImageNet's size: ``python -m erw.bench.store_scale --work DIR --write docs/data.md``

Writes 1,281,167 generated rows of moments into a real store (21 GB), opens it, reads it as one and as two ranks of a training
do, with its files in memory and not; then 64K rows with features (27 GB). Each is deleted before the next is written. What
was measured is held against what eight GPUs need.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

import psutil
import torch

from erw.bench._record import RESULTS
from erw.bench._stores_rows import FEATURES, Rows
from erw.bench.stores import write_page
from erw.environment import fingerprint
from erw.errors import UserError, exits_cleanly
from erw.files import json_bytes, whole

RECORD = RESULTS / "store-scale.json"
GPUS, PUBLISHED = 8, 173.0  # images/s of one H100 with SiT-XL/2, as REPA's appendix has it
PRESETS = {"moments": "in256-sit-xl2", "features": "in256-repa-xl2"}
_MARGIN = 2e9  # bytes that a disk keeps free


def needs(gpu: str = "h200") -> list[dict[str, Any]]:
    """Images/s of eight GPUs: as published, and as `erw plan` has it (from our own record of such a GPU where there is one)."""
    from erw.plan.forecast import Forecaster
    from erw.plan.network import Network
    from erw.plan.rates import rates_of
    from erw.presets import preset

    rates, planned = rates_of(gpu), {}
    for name, called in PRESETS.items():
        forecast = Forecaster(preset(called), rates).at(Network(GPUS, GPUS, rates.link, 50.0 * GPUS))
        planned[name] = forecast.images_per_second
    published = dict.fromkeys(PRESETS, GPUS * PUBLISHED)
    return [
        {"short": "8 H100, published", "images_per_second": published,
         "source": f"REPA's paper: {PUBLISHED:.0f} images/s a GPU, SiT-XL/2."},
        {"short": f"8 {gpu.upper()}, planned", "images_per_second": planned,
         "source": f"`erw plan {PRESETS['features']} --gpus 8 --gpu {gpu}` (moments: `{PRESETS['moments']}`): {rates.source}."},
    ]  # fmt: skip


def scale(options: argparse.Namespace) -> dict[str, Any]:
    """The record. Raises `UserError` where the disk has too little room."""
    shapes = {"moments": Rows(options.rows), "features": Rows(options.feature_rows, features=FEATURES)}
    shapes = {name: rows for name, rows in shapes.items() if rows.count}
    _check_room(options.work, {name: rows.count * rows.row_bytes for name, rows in shapes.items()}, options.keep)
    record = {"what": "store-scale", "workers": options.workers, "seconds": options.seconds, "stores": {}}
    record["memory"] = psutil.virtual_memory().total
    for name, rows in shapes.items():
        folder = options.work / f"scale-{name}"
        shutil.rmtree(folder, ignore_errors=True)
        try:
            record["stores"][name] = _measured(folder, rows, options)
        finally:
            if not options.keep:
                shutil.rmtree(folder, ignore_errors=True)
    return record | {"needs": needs(), "environment": fingerprint(torch.device("cpu"))}


def _check_room(work: Path, sizes: dict[str, int], keep: bool) -> None:
    work.mkdir(parents=True, exist_ok=True)
    needed = (sum if keep else max)(sizes.values()) * 1.01 + _MARGIN
    free = shutil.disk_usage(work).free
    if free < needed:
        raise UserError(f"--work {work} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed: name another folder")


def _measured(folder: Path, rows: Rows, options: argparse.Namespace) -> dict[str, Any]:
    from erw.bench import _store_scale_child as child
    from erw.bench._stores_child import alone

    print(f"{folder.name}: writing {rows.count:,} rows of {rows.row_bytes:,} bytes", flush=True)
    written = child.write(folder, rows, options.processes)
    print(f"{folder.name}: {written['seconds']:.0f} s", flush=True)
    openings = [alone(child.opening, folder, method="forkserver") for _ in range(3)]
    found: dict[str, Any] = {"rows": rows.count, "row_bytes": rows.row_bytes, "write": written, "speed": []}
    found["open"] = {key: [opening[key] for opening in openings] for key in openings[0]}
    for warm in (False, True):
        for ranks in (1, 2):
            cell = child.speed(folder, rows, ranks, options.workers, options.seconds, warm)
            found["speed"].append({"ranks": ranks, "warm": warm} | cell)
            print(
                f"{folder.name}: {ranks} ranks, {'warm' if warm else 'cold'}: {cell['rows_per_second']:,.0f} rows/s", flush=True
            )
    return found


@exits_cleanly
def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    from erw.bench._store_scale_table import table

    parser = argparse.ArgumentParser(prog="python -m erw.bench.store_scale", description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="folder with 30 GB of room; without it nothing is measured")
    parser.add_argument("--rows", type=int, default=1_281_167, help="of moments (default ImageNet's); 0: none")
    parser.add_argument("--feature-rows", type=int, default=65_536, help="with features (default 65536); 0: none")
    parser.add_argument("--processes", type=int, default=2, help="that write (default 2)")
    parser.add_argument("--workers", type=int, default=1, help="loader processes a rank (default 1)")
    parser.add_argument("--seconds", type=float, default=40.0, help="of reading at most, each time (default 40)")
    parser.add_argument("--keep", action="store_true", help="leave the stores there")
    parser.add_argument("--out", type=Path, default=RECORD, help="record (default bench/results/store-scale.json)")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="write the tables into <!-- store-scale --> of this page")
    options = parser.parse_args(arguments)
    if min(options.rows, options.feature_rows, options.workers) < 0 or options.processes < 1 or options.seconds <= 0:
        raise UserError("--rows, --feature-rows and --workers are 0 or more, --processes at least 1, --seconds above 0")
    if not options.rows and not options.feature_rows:
        raise UserError("--rows 0 --feature-rows 0 leaves nothing to measure")
    if options.work is not None:
        record = scale(options)
        with whole(options.out) as file:
            file.write(json_bytes(record))
    write_page(options.out, options.write, "store-scale", table)


if __name__ == "__main__":
    main()
