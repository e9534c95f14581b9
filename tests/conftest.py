"""Shared fixtures. Tests run on a CPU; those that need a GPU say so and are skipped there, visibly."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import forked
from kernel_tables import pytest_terminal_summary  # noqa: F401  (a hook)
from launch import environment

ROOT = Path(__file__).resolve().parent.parent

# Before anything imports triton: on a CPU its interpreter runs the kernels.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(config, items):
    """Skip GPU tests where there is none and timings that nobody asked for, and run the fast ones first."""
    for item in items:
        if "benchmark" in item.fixturenames and not config.getoption("benchmark_only", False):
            item.add_marker(pytest.mark.skip(reason="a timing: pytest --benchmark-only runs it"))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
    items.sort(key=lambda item: "slow" in item.keywords)


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(machine_info):
    """What our own records say of a machine, instead of its name in the network and the like."""
    from erw.environment import fingerprint

    machine_info.clear()
    machine_info.update(fingerprint(torch.device("cuda" if torch.cuda.is_available() else "cpu")))


@pytest.fixture
def elapse(monkeypatch):
    """``elapse(seconds)`` is all that lets ``time.perf_counter`` go on: what is measured is exact, however busy the machine."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def elapse(seconds: float) -> None:
        now[0] += seconds

    return elapse


@pytest.fixture(scope="session")
def run_erw(tmp_path_factory):
    """Run ``train_ds.py`` (or another program) on some ranks; returns the finished process.

    It is forked from a process that has imported everything, unless it is to start ``as_a_user`` starts it, or with an
    environment of its own, which imports may read.
    """

    def run(*arguments: str, ranks: int = 1, env: dict[str, str] | None = None, program: str = "train_ds.py",
            timeout: int = 580, as_a_user: bool = False) -> subprocess.CompletedProcess:  # fmt: skip
        command = program.split() if program.startswith("-m") else [str(ROOT / program)]
        command += map(str, arguments)
        around = environment(**{"OMP_NUM_THREADS": "1" if ranks > 1 else "2"} | (env or {}))
        if env is None and not as_a_user:
            return forked.run(command, ranks, around, timeout, tmp_path_factory.mktemp("process"))
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        command = [sys.executable, *(launcher if ranks > 1 else []), *command]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=around, cwd=ROOT)

    return run
