"""Measurements of one store, each in a process of its own that has opened nothing before."""

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

from erw.bench import _stores_cache as cache
from erw.bench._stores_base import Candidate, Reading, candidates
from erw.bench._stores_rows import Rows, wrong
from erw.errors import UserError

_PRELOAD = ["erw.bench._store_scale_child", "erw.bench.stores"]  # our own code, none of the libraries
PATIENCE = 300.0  # seconds after which a process is taken to hang


class Failed(Exception):
    """What a process ended with instead of a result: the error's last line, or how it died."""


def alone(work: Callable[..., Any], *arguments: Any, method: str = "fork") -> Any:
    """``work(*arguments)`` in a process of its own. Raises `Failed`."""
    return together([(work, arguments)], method)[0]


def together(works: list[tuple[Callable[..., Any], tuple]], method: str = "fork", patience: float = PATIENCE) -> list[Any]:
    """Each in a process of its own, at the same time. Raises `Failed` with the first that fails."""
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(_PRELOAD)
    pipes, processes = [], []
    for work, arguments in works:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_answer, args=(theirs, work, arguments))
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    try:
        return [_result(pipe, process, patience) for pipe, process in zip(pipes, processes, strict=True)]
    finally:
        for process in processes:
            _end(process)


def _answer(pipe: Any, work: Callable[..., Any], arguments: tuple) -> None:
    multiprocessing.set_start_method("fork", force=True)  # of loader processes, as in training; ours would be passed on to them
    try:
        pipe.send((True, work(*arguments)))
    except BaseException as error:
        if isinstance(error, Failed):
            pipe.send((False, str(error)))
            return
        traceback.print_exc()
        lines = [line for line in str(error).strip().splitlines() if line.strip()]
        pipe.send((False, f"{type(error).__name__}: {lines[-1].strip() if lines else ''}"))


def _result(pipe: Any, process: Any, patience: float) -> Any:
    if not pipe.poll(patience):
        raise Failed(f"hangs: no answer in {patience:.0f} s")
    try:
        done, found = pipe.recv()
    except EOFError:
        process.join(10)
        raise Failed(f"crash: exit code {process.exitcode}") from None
    if not done:
        raise Failed(found)
    return found


def _end(process: Any) -> None:
    process.join(5)
    if process.is_alive():
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        process.join()


def write(store: Candidate, folder: Path, rows: Rows, shard: int) -> dict[str, float]:
    """Seconds until all is on the disk, bytes, files."""
    start = time.monotonic()
    store.write(folder, rows, shard)
    cache.empty(folder)
    return {"seconds": time.monotonic() - start, "bytes": cache.size_of(folder), "files": len(cache.files_in(folder))}


def epoch(store: Candidate, folder: Path, rows: Rows, reading: Reading, cold: bool) -> dict[str, Any]:
    """An epoch, from asking for the first batch to the last row. Raises `UserError` where rows are missing or wrong."""
    torch.set_num_threads(1)
    held = cache.empty(folder) if cold else cache.fill(folder)
    start = time.monotonic()
    dataset = store.open(folder, rows, reading)
    opened = time.monotonic()
    seen, first = [], None
    for batch in store.batches(dataset, rows, reading)[0]:
        if first is None:
            first, sample = time.monotonic() - opened, batch
        seen.append(batch["labels"].clone())  # without the loader's shared memory
    seconds = time.monotonic() - opened
    numbers = torch.cat(seen)
    if numbers.unique().numel() != rows.count or len(numbers) != rows.count or wrong(sample, rows):
        raise UserError(f"{store.name}: an epoch of {rows.count} rows gave {len(numbers)}, or bytes that were not written")
    return {"rows_per_second": rows.count / seconds, "seconds": seconds, "open_seconds": opened - start,
            "first_seconds": first, "in_memory_before": held}  # fmt: skip


def memory(store: Candidate, folder: Path, rows: Rows, reading: Reading) -> dict[str, float]:
    """MB of the largest loader process in the middle of an epoch: its own (USS), with its share of common pages (PSS), RSS."""
    torch.set_num_threads(1)
    cache.fill(folder)
    dataset = store.open(folder, rows, reading)
    batches = store.batches(dataset, rows, reading)[0]
    for _ in range(rows.count // reading.batch // 2):
        next(batches)
    workers = [p.memory_full_info() for p in psutil.Process().children(recursive=True)]
    if len(workers) < reading.workers:
        raise UserError(f"{store.name}: {len(workers)} loader processes instead of {reading.workers}")
    return {name: max(getattr(worker, name) for worker in workers) / 1e6 for name in ("uss", "pss", "rss")}


def opening(store: Candidate, folder: Path, rows: Rows, reading: Reading) -> dict[str, float]:
    """Seconds from nothing in memory to an open dataset and to its first batch, and what the process then holds (USS, MB)."""
    torch.set_num_threads(1)
    cache.empty(folder)
    before, start = psutil.Process().memory_full_info().uss, time.monotonic()
    dataset = store.open(folder, rows, reading)
    opened = time.monotonic()
    batches = store.batches(dataset, rows, reading)[0]
    next(batches)
    first = time.monotonic()
    grown = psutil.Process().memory_full_info().uss - before
    return {"open_seconds": opened - start, "first_seconds": first - opened, "uss": grown / 1e6}


def labels(name: str, folder: Path, rows: Rows, reading: Reading, stop: int | None, meeting: Path | None) -> dict[str, Any]:
    """The labels of each batch of an epoch, and the store's state after ``stop`` batches."""
    if reading.ranks > 1:
        _join(reading, meeting)
    store = candidates()[name]
    batches, loader = store.batches(store.open(folder, rows, reading), rows, reading)
    found, state = [], None
    for batch in batches:
        found.append(batch["labels"].tolist())
        if len(found) == stop:
            state = store.state(loader, stop, reading)
    return {"labels": found, "state": state}


def _join(reading: Reading, meeting: Path) -> None:
    import torch.distributed as dist

    facts = {"RANK": reading.rank, "LOCAL_RANK": reading.rank, "WORLD_SIZE": reading.ranks, "LOCAL_WORLD_SIZE": reading.ranks,
             "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 0}  # fmt: skip
    os.environ.update({name: str(value) for name, value in facts.items()})
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=reading.rank, world_size=reading.ranks)


def damaged(name: str, folder: Path, rows: Rows, reading: Reading) -> list[int]:
    """Read an epoch; the numbers of rows that came back other than they were written."""
    store = candidates()[name]
    batches, _ = store.batches(store.open(folder, rows, reading), rows, reading)
    return [number for batch in batches for number in wrong(batch, rows)]
