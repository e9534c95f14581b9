"""Processes of `erw.bench.store_scale`: they write shards, open a store, read it as the ranks of a training do."""

import multiprocessing
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from erw.bench import _stores_cache as cache
from erw.bench._stores_arrow import teachers
from erw.bench._stores_child import together
from erw.bench._stores_rows import Rows, wrong
from erw.data.store import StoreDataset, rows_per_shard, seal, write_shard
from erw.data.store.columns import column_of
from erw.data.stream import Wanted, stream
from erw.errors import UserError

MICRO, SEED, WINDOW = 32, 0, 16
START = "spawn"  # ranks afresh, as a launcher does: copies of a process would share memory with each other


def write(folder: Path, rows: Rows, processes: int) -> dict[str, Any]:
    """Write the store as `erw prepare` would, shards by turns. Seconds until all is on the disk."""
    folder.mkdir(parents=True)
    wide = [column_of(name, value) for name, value in rows.columns(0, 1).items() if name != "labels"]
    shard = rows_per_shard(wide)
    start = time.monotonic()
    written = together(
        [(_write_part, (folder, rows, shard, part, processes)) for part in range(processes)], "forkserver", 3600.0
    )
    shards = sorted((entry for part in written for entry in part), key=lambda entry: entry["index"])
    seal(folder, shards, rows.count, teachers(rows))
    seconds = time.monotonic() - start
    return {
        "seconds": seconds,
        "processes": processes,
        "bytes": cache.size_of(folder),
        "shards": len(shards),
        "shard_rows": shard,
    }


def _write_part(folder: Path, rows: Rows, shard: int, part: int, parts: int) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    firsts = range(part * shard, rows.count, parts * shard)
    return [write_shard(folder, f // shard, rows.columns(f, min(shard, rows.count - f))) for f in firsts]


def opening(folder: Path) -> dict[str, float]:
    """Seconds to open the store, with nothing of it in memory, and MB (USS) that it holds then."""
    cache.empty(folder)
    before, start = psutil.Process().memory_full_info().uss, time.monotonic()
    dataset = StoreDataset(str(folder), WINDOW)
    seconds = time.monotonic() - start
    len(dataset)
    return {"seconds": seconds, "uss": (psutil.Process().memory_full_info().uss - before) / 1e6}


def speed(folder: Path, rows: Rows, ranks: int, workers: int, seconds: float, warm: bool) -> dict[str, Any]:
    """Rows/s of all ranks together, from the first request until ``seconds`` are over or the rows are.

    Warm: only windows that fit into half of the free memory, read into it before.
    """
    limit = rows.count
    if warm:
        files, limit = warm_part(folder)
        held = cache.fill(files)
    else:
        held = cache.empty(folder)
    context = multiprocessing.get_context(START)
    with context.Manager() as manager:
        barrier = manager.Barrier(ranks)
        works = [(_rank, (folder, rows, rank, ranks, workers, seconds, limit, barrier)) for rank in range(ranks)]
        found = together(works, START, seconds + 300.0)
    span = max(part["end"] for part in found) - min(part["start"] for part in found)
    read = sum(part["rows"] for part in found)
    return {
        "rows_per_second": read / span, "rows": read, "seconds": span, "in_memory_before": held,
        "first_seconds": max(part["first"] for part in found), "rank": _most(found, "rank"), "worker": _most(found, "worker"),
    }  # fmt: skip


def _most(found: list[dict], who: str) -> dict[str, float]:
    return {name: max(part[who][name] for part in found) for name in ("uss", "rss")}


def warm_part(folder: Path) -> tuple[list[Path], int]:
    """Files of the first windows of the epoch that fit into half of the free memory, the one fetched ahead with them, and
    the rows of all but that one."""
    dataset, room = StoreDataset(str(folder), WINDOW), psutil.virtual_memory().available / 2
    blocks, files, rows, size = dataset.blocks, [], [], 0
    for window in range(blocks.windows):
        shards = [int(shard) for shard in blocks.shards(SEED, 0, window)]
        more = [folder / dataset.place.file_name(s, group) for s in shards for group in dataset.manifest.groups]
        size += sum(file.stat().st_size for file in more)
        if size > room and window:
            break
        files += more
        rows.append(sum(blocks.shard_rows[shard] for shard in shards))
    return files, sum(rows if len(rows) in (1, blocks.windows) else rows[:-1])


def _rank(folder: Path, rows: Rows, rank: int, ranks: int, workers: int, seconds: float, limit: int, barrier: Any) -> dict:
    torch.set_num_threads(1)
    dataset = StoreDataset(str(folder), WINDOW)
    wanted = Wanted(("t",) if rows.features else ())
    step = MICRO * ranks
    barrier.wait(120)
    start = time.monotonic()
    batches = stream(dataset, SEED, 0, step, MICRO, rank, ranks, workers, wanted=wanted)
    done, first = 0, None
    while done + MICRO <= max(MICRO, limit // ranks) and time.monotonic() - start < seconds:
        batch = next(batches)
        if first is None:
            first, sample = time.monotonic() - start, batch
        done += MICRO
    end = time.monotonic()
    values = {"latents": sample.latents, "labels": sample.labels} | (
        {"features": sample.features["t"]} if rows.features else {}
    )
    if wrong(values, rows):
        raise UserError(f"{folder} gave bytes that were not written")
    held = [process.memory_full_info() for process in psutil.Process().children(recursive=True)]
    mine = psutil.Process().memory_full_info()
    return {"start": start, "end": end, "rows": done, "first": first, "rank": _mb([mine]), "worker": _mb(held)}


def _mb(held: list[Any]) -> dict[str, float]:
    """Of the largest; 0 where there is none."""
    return {name: max((getattr(process, name) for process in held), default=0) / 1e6 for name in ("uss", "rss")}
