"""Several processes, each with an encoder of its own, on one kind of task: a shard's number.

A process ends with its parent: one that lives on after a kill would write beside the command that goes on.
"""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

from erw.errors import RankError

_POLL = 0.5  # seconds between looks at the counter
_worker: Any = None  # of a child process: what `_begin` made


def run_inline(make: Callable[[torch.device, Callable[[int], None]], Callable[[int], Any]], tasks: list[int],
               device: torch.device, advance: Callable[[int], None]) -> Iterator[Any]:  # fmt: skip
    """Results of ``make(device, advance)(task)`` in this process."""
    work = make(device, advance)
    for task in tasks:
        yield work(task)


def run_processes(make: Callable[[torch.device, Callable[[int], None]], Callable[[int], Any]], tasks: list[int],
                  devices: list[torch.device], advance: Callable[[int], None]) -> Iterator[Any]:  # fmt: skip
    """The same by a process for each of ``devices`` (one may be named twice), in the order in which they finish.

    CPU processes share the cores. ``make`` is pickled. Raises what a task raised, and `RankError` where a process died.
    """
    context = multiprocessing.get_context("spawn")
    turn, done = context.Value("i", 0), context.Value("q", 0)
    threads = max(1, (os.cpu_count() or 1) // len(devices)) if devices[0].type == "cpu" else 1
    seen = 0
    with ProcessPoolExecutor(len(devices), context, _begin, (make, devices, threads, turn, done)) as pool:
        waiting = {pool.submit(_task, task) for task in tasks}
        try:
            while waiting:
                finished, waiting = wait(waiting, _POLL, FIRST_COMPLETED)
                now = done.value
                advance(now - seen)
                seen = now
                for future in finished:
                    yield future.result()
        except BrokenProcessPool:
            raise RankError(
                "a process of erw prepare was killed (out of memory? take fewer --processes or a smaller --batch); finished"
                " shards are kept, the same command goes on"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _begin(make, devices, threads, turn, done) -> None:
    global _worker
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    with turn.get_lock():
        device, turn.value = devices[turn.value % len(devices)], turn.value + 1
    torch.set_num_threads(threads)

    def advance(images: int) -> None:
        with done.get_lock():
            done.value += images

    try:
        _worker = make(device, advance)
    except Exception as error:  # here it would only break the pool; a task can say it
        _worker = _Failed(error)


class _Failed:
    def __init__(self, error: Exception):
        self.error = error

    def __call__(self, number: int) -> None:
        raise self.error


def _task(number: int) -> Any:
    return _worker(number)
