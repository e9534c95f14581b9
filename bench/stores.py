"""Stores of sharded data compared on rows of ImageNet's shape: ``python -m erw.bench.stores --work DIR``

erw's own store, Hugging Face datasets, litdata, mosaicml-streaming and webdataset write the same generated rows and read
epochs of them, in random and in block-shuffled order, with the files in memory and not; each cell in a process of its own, the
stores in turn. How they open 1,281,167 rows, resume an epoch and take a flipped bit is tried too.

    pip install datasets psutil litdata webdataset
    pip install --no-deps mosaicml-streaming        # pins a numpy older than this project's
    python -m erw.bench.stores --work DIR --out bench/results/stores.json --write docs/data.md
"""

import argparse
import importlib.metadata
import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from erw.bench._record import RESULTS
from erw.bench._section import with_section
from erw.bench._stores_table import CELLS, cell_name, table
from erw.environment import fingerprint
from erw.errors import UserError, exits_cleanly
from erw.files import json_bytes, whole

RECORD = RESULTS / "stores.json"
SHARD_BYTES, MIXED = 32 << 20, 4
_OPEN_SHARD = 8192  # rows a file, as `erw import-data` writes moments
_KEPT = ("rows_per_second", "open_seconds", "first_seconds", "in_memory_before")


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """The record. Raises `UserError` for a library or disk that is missing."""
    from erw.bench._stores_base import candidates
    from erw.bench._stores_rows import FEATURES, Rows

    _check_installed(options.stores)
    stores = {name: candidates()[name] for name in options.stores}
    shapes = {"moments": Rows(options.rows), "features": Rows(options.feature_rows, features=FEATURES)}
    shapes = {name: rows for name, rows in shapes.items() if rows.count}
    _check_room(options.work, max(rows.count * rows.row_bytes for rows in shapes.values()) * len(stores) * 1.2)
    record: dict[str, Any] = {
        "what": "stores",
        "rounds": options.rounds,
        "shard_bytes": SHARD_BYTES,
        "shapes": {},
        "opening": {},
    }
    with _folder(options.work) as work:
        record["stores"] = {name: _described(store) | {"faults": _faults(store, work / name)} for name, store in stores.items()}
        for name, rows in shapes.items():
            record["shapes"][name] = _shape(name, stores, rows, work / name, options.rounds)
        if options.open_rows:
            rows = Rows(options.open_rows, latents=(1, 2, 2))
            record["opening"] = _opening(stores, rows, work / "open", options.rounds)
    return record | {"environment": fingerprint(torch.device("cpu"))}


def _check_installed(names: list[str]) -> None:
    from erw.bench._stores_base import candidates

    known = candidates()
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"--stores {unknown[0]} is not known: {', '.join(known)}")
    missing = [known[name].package for name in names if importlib.util.find_spec(known[name].module) is None]
    missing += ["psutil"] * (importlib.util.find_spec("psutil") is None)
    if missing:
        raise UserError(f"not installed: {', '.join(missing)}: pip install {' '.join(missing)}, or leave it out with --stores")


def _check_room(work: Path, needed: float) -> None:
    work.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(work).free
    if free < needed:
        raise UserError(
            f"--work {work} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed: name another, or fewer --rows"
        )


@contextmanager
def _folder(work: Path) -> Iterator[Path]:
    folder = work / "stores"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _described(store: Any) -> dict[str, Any]:
    return {
        "version": f"{store.package} {importlib.metadata.version(store.package)}",
        "conflicts": conflicts(store.package),
        "shuffle": store.shuffle,
        "storage": store.storage,
    }


def conflicts(package: str) -> list[str]:
    """What the package requires and the versions that are installed here do not meet."""
    from packaging.requirements import Requirement

    found = []
    for line in importlib.metadata.requires(package) or []:
        wanted = Requirement(line)
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if not wanted.specifier.contains(installed, prereleases=True):
            found.append(f"{wanted.name}{wanted.specifier} (here {installed})")
    return found


def _faults(store: Any, work: Path) -> dict[str, str]:
    from erw.bench._stores_faults import faults

    work.mkdir()
    print(f"{store.name}: resume and a flipped bit", flush=True)
    return faults(store, work)


def _shape(shape: str, stores: dict[str, Any], rows: Any, work: Path, rounds: int) -> dict[str, Any]:
    from erw.bench._stores_child import Failed, alone, write

    shard = max(16, SHARD_BYTES // rows.row_bytes)
    found: dict[str, Any] = {}
    for name, store in stores.items():
        try:
            found[name] = {"write": alone(write, store, work / name, rows, shard, method="forkserver"), "cells": {}}
        except Failed as error:
            found[name] = {"failed": f"writing: {error}"}
    for number in range(rounds):
        order = list(stores)[number % len(stores) :] + list(stores)[: number % len(stores)]
        for name in order:
            if "failed" not in found[name]:
                _round(shape, stores[name], rows, work / name, shard, found[name], number)
    shutil.rmtree(work)
    return {"rows": rows.count, "row_bytes": rows.row_bytes, "shard_rows": shard, "stores": found}


def _round(shape: str, store: Any, rows: Any, folder: Path, shard: int, found: dict[str, Any], number: int) -> None:
    from erw.bench._stores_child import Failed, alone

    try:
        cells, memory = alone(_cells, store, folder, rows, shard, number == 0, method="forkserver")
    except Failed as error:
        found["failed"] = str(error)
        return
    for key, cell in cells.items():
        kept = found["cells"].setdefault(key, {name: [] for name in _KEPT})
        for name in _KEPT:
            kept[name].append(cell[name])
        print(f"{shape} {store.name} {key}: {cell['rows_per_second']:,.0f} rows/s", flush=True)
    found["memory"] = memory or found["memory"]


def _cells(store: Any, folder: Path, rows: Any, shard: int, with_memory: bool) -> tuple[dict[str, Any], dict | None]:
    """In a process that has imported the library and opened nothing: each cell in a copy of it."""
    from erw.bench._stores_base import Reading
    from erw.bench._stores_child import alone, epoch, memory

    importlib.import_module(store.module)
    batch = 256 if not rows.features else 32
    found = {}
    for order, cold, workers, _ in CELLS:
        if order == "random" and not store.by_number:
            continue
        reading = Reading(order, batch, workers, MIXED * shard)
        found[cell_name(order, cold, workers)] = alone(epoch, store, folder, rows, reading, cold)
    return found, alone(memory, store, folder, rows, Reading("block", batch, 2, MIXED * shard)) if with_memory else None


def _opening(stores: dict[str, Any], rows: Any, work: Path, rounds: int) -> dict[str, Any]:
    from erw.bench._stores_child import Failed, alone, write

    found: dict[str, Any] = {}
    shard = _OPEN_SHARD
    for name, store in stores.items():
        if not store.by_number:
            found[name] = {"failed": "has no index to open"}
            continue
        print(f"{rows.count:,} rows: {name}", flush=True)
        try:
            found[name] = {"write": alone(write, store, work / name, rows, shard, method="forkserver")}
            openings = [alone(_open_once, store, work / name, rows, shard, method="forkserver") for _ in range(rounds)]
            found[name] |= {key: [opening[key] for opening in openings] for key in openings[0]}
        except Failed as error:
            found[name] = {"failed": str(error)}
        shutil.rmtree(work / name, ignore_errors=True)
    return {"rows": rows.count, "row_bytes": rows.row_bytes, "shard_rows": shard, "stores": found}


def _open_once(store: Any, folder: Path, rows: Any, shard: int) -> dict[str, float]:
    from erw.bench._stores_base import Reading
    from erw.bench._stores_child import alone, opening

    importlib.import_module(store.module)
    return alone(opening, store, folder, rows, Reading("block", 256, 0, MIXED * shard))


@exits_cleanly
def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m erw.bench.stores", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--work", type=Path, help="folder for what is written and read, emptied afterwards; without it nothing is measured"
    )
    parser.add_argument("--rows", type=int, default=20_480, help="of moments (default 20480: 0.3 GB a store)")
    parser.add_argument("--feature-rows", type=int, default=2_048, help="with features (default 2048: 0.8 GB a store)")
    parser.add_argument(
        "--open-rows", type=int, default=1_281_167, help="small rows to open (default ImageNet's); 0: leave out"
    )
    parser.add_argument("--rounds", type=int, default=3, help="of each measurement (default 3)")
    parser.add_argument("--stores", default="erw,datasets,litdata,mosaicml-streaming,webdataset", help="which (default all)")
    parser.add_argument("--out", type=Path, default=RECORD, help="record (default bench/results/stores.json)")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="write the tables into <!-- stores --> of this page")
    options = parser.parse_args(arguments)
    options.stores = [name for name in options.stores.split(",") if name]
    if options.rounds < 1 or any(n % 256 or n < 1024 for n in (options.rows, options.feature_rows) if n):
        raise UserError("--rows and --feature-rows are multiples of 256 from 1,024 on (or 0), --rounds at least 1")
    if options.work is not None:
        record = compare(options)
        with whole(options.out) as file:
            file.write(json_bytes(record))
    write_page(options.out, options.write, "stores", table)


def write_page(out: Path, page: Path | None, name: str, table_of: Any) -> None:
    """Print the record's table, and put it into the section ``name`` of ``page``."""
    try:
        record = json.loads(out.read_text(encoding="utf-8"))
        text = None if page is None else page.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"--out {out} or --write {page} cannot be read: {error}") from None
    print(table_of(record), file=sys.stdout)
    if page is not None:
        page.write_text(with_section(text, name, table_of(record), str(page)), encoding="utf-8")


if __name__ == "__main__":
    main()
