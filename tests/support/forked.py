"""Programs that start at once: forked from a process that has imported everything (`erw.bench._lives_preload`)."""

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from erw.bench._lives import Life

ROOT = Path(__file__).resolve().parents[2]


def run(
    command: list[str], ranks: int, environment: dict[str, str], timeout: float, folder: Path
) -> subprocess.CompletedProcess:
    """The finished program of ``command`` (a file, or -m and a module, then arguments) on ``ranks`` ranks, each a process.

    ``folder`` takes what they write. The exit code is the first that is not 0, and ends the other ranks, as torchrun does.
    Raises `subprocess.TimeoutExpired`.
    """
    from erw.bench._lives import Life, fork, free_port  # imports triton, for which a test session sets the interpreter first

    out, err = folder / "stdout", folder / "stderr"
    if ranks > 1:
        environment = environment | {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    life = Life([], [out])
    for rank in range(ranks):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
        life.processes.append(fork(_program, command, environment | place, str(out), str(err)))
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
    from erw.bench._lives import write_into

    write_into(out, err)
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
