"""Programs that start at once: forked from a process that has imported everything (`erw.bench._lives_preload`)."""

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from erw.bench._lives import Life

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(
    command: list[str], ranks: int, environment: dict[str, str], timeout: float, folder: Path
) -> subprocess.CompletedProcess:
    """The finished program of ``command`` (a file, or -m and a module, then arguments) on ``ranks`` ranks, each a process.

    ``folder`` takes what they write. The exit code is the first that is not 0, and ends the other ranks, as torchrun does.
    Raises `subprocess.TimeoutExpired`.
    """
    from erw.bench._lives import Life  # imports triton, for which a test session sets the interpreter first

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["erw.bench._lives_preload"])
    out, err = folder / "stdout", folder / "stderr"
    if ranks > 1:
        environment = environment | {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    life = Life([], [out])
    for rank in range(ranks):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
        life.processes.append(context.Process(target=_program, args=(command, environment | place, str(out), str(err))))
        life.processes[-1].start()
    codes = _codes(life, timeout)
    life.end()
    if codes is None:
        raise subprocess.TimeoutExpired(command, timeout, out.read_text(), err.read_text())
    return subprocess.CompletedProcess(command, next(filter(None, codes), 0), out.read_text(), err.read_text())


def _codes(life: "Life", timeout: float) -> list[int] | None:
    """Exit codes of all ranks; a rank that fails leaves the others ten seconds. None: they were not done in time."""
    codes = life.wait(0)
    while None in codes and timeout > 0:
        if any(codes):
            codes = life.wait(10)
            life.end()
            return [code or 0 for code in codes]
        codes = life.wait(0.1)
        timeout -= 0.1
    return None if None in codes else codes


def _program(command: list[str], environment: dict[str, str], out: str, err: str) -> None:
    for file, descriptor in ((out, 1), (err, 2)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)

    import torch

    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    if command[0] == "-m":
        sys.argv = command[1:]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = command
        runpy.run_path(command[0], run_name="__main__")
