"""Training jobs whose processes start in a second and may be killed: forked from one that has imported everything.

Each rank of a job is a process of its own with the environment that a launcher gives, and ``train_ds``'s own end.
"""

import contextlib
import json
import multiprocessing
import os
import random
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from erw.config import TrainConfig, config_from_dict
from erw.errors import UserError
from erw.settings import to_dict

Prepare = Callable[[], None]


@dataclass
class Life:
    """The processes of one job, in order of ranks, and the file that each writes what it says into."""

    processes: list[multiprocessing.Process]
    logs: list[Path] = field(default_factory=list)

    def alive(self) -> bool:
        """Whether any rank still runs."""
        return any(process.is_alive() for process in self.processes)

    def signal(self, number: int, ranks: list[int] | None = None) -> None:
        """Send a signal to some ranks (all) at once."""
        for rank in range(len(self.processes)) if ranks is None else ranks:
            if self.processes[rank].is_alive():
                os.kill(self.processes[rank].pid, number)

    def wait(self, seconds: float) -> list[int | None]:
        """Exit codes of all ranks (None: still running after ``seconds``)."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        return [process.exitcode for process in self.processes]

    def end(self) -> None:
        """Kill what is left."""
        for process in self.processes:
            process.kill()
            process.join()

    def said(self, rank: int = 0) -> str:
        """Standard output and error of a rank so far."""
        return self.logs[rank].read_text(encoding="utf-8", errors="replace")


def free_port() -> int:
    """A port that nobody listens on, of those that no outgoing connection is given."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_768)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def fork(target: Callable, *arguments) -> multiprocessing.Process:
    """A process that runs ``target``, a function of a module, started from one that has imported `erw.bench._lives_preload`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["erw.bench._lives_preload"])
    process = context.Process(target=target, args=arguments)
    process.start()
    return process


def write_into(out: str, err: str) -> None:
    """Append to these files what this process, and what it starts, says from now on."""
    for file, descriptor in ((out, 1), (err, 2)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)


def start(configs: list[TrainConfig], ranks: int, logs: Path, prepare: Prepare | None = None) -> Life:
    """Train ``configs``, one after the other, on ``ranks`` ranks; each rank calls ``prepare``, a function of a module, first.
    ``logs``: a folder."""
    logs.mkdir(parents=True, exist_ok=True)
    port = free_port()
    life = Life([], [logs / f"rank{rank}.log" for rank in range(ranks)])
    settings = json.dumps([to_dict(config) for config in configs])
    for rank, log in enumerate(life.logs):
        log.write_text("", encoding="utf-8")
        life.processes.append(fork(_rank, rank, ranks, port, settings, str(log), prepare))
    return life


def _rank(rank: int, ranks: int, port: int, settings: str, log: str, prepare: Prepare | None) -> None:
    write_into(log, log)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in place.items()})
    sys.argv = ["train_ds.py"]

    import torch

    import train_ds

    torch.set_num_threads(1)
    if prepare is not None:
        prepare()
    train_ds.train_and_leave(*(config_from_dict(config) for config in json.loads(settings)))


def started(life: Life, seconds: float = 120.0) -> None:
    """Wait until the first step is done, which a line or a bar shows. Raises `UserError` where the job ends or takes longer."""
    deadline = time.monotonic() + seconds
    while "images/s" not in life.said() and "img/s" not in life.said():  # a line, or a terminal's bar
        if not life.alive() or time.monotonic() > deadline:
            raise UserError(f"the job did not start: {life.said()[-2000:]}")
        time.sleep(0.01)
