"""Sampling by one, two and three processes, killed and started again: the same bytes, and the same evaluation."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from erw import cli
from erw.engine.ranks import Ranks
from erw.sample.job import SampleJob, run_job
from launch import environment
from sampling import OPTIONS, evaluate
from untrained import untrained

pytestmark = [pytest.mark.slow, pytest.mark.dist]
LONG = ["--count", "22", "--batch", "4", "--guidance", "1.5", "--steps", "150"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("ranks") / "run")[0]


@contextmanager
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def one(run, tmp_path_factory):
    """What one process samples, on one thread as the ranks have."""
    out, alone = tmp_path_factory.mktemp("one"), Ranks(0, 1, torch.device("cpu"))
    with one_thread():
        evaluate(run, out / "eval", alone)
        run_job(SampleJob(path=run, out=out / "png", format="png", count=26, batch=12), alone)
        cli.main(["sample", str(run), "--out", str(out / "npz"), *OPTIONS])
        cli.main(["sample", str(run), "--out", str(out / "long"), *LONG])
    return out


def pictures(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (folder / "png" / "images").iterdir()}


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_ranks_change_no_byte_and_no_figure(run, one, run_erw, tmp_path, ranks):
    done = run_erw(run, tmp_path, ranks=ranks, program="tests/support/sampling.py")
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "npz" / "samples.npz").read_bytes() == (one / "npz" / "samples.npz").read_bytes()
    assert len(pictures(tmp_path)) == 26 and pictures(tmp_path) == pictures(one)
    assert json.loads((tmp_path / "npz" / "manifest.json").read_text())["sampling"]["ranks"] == ranks
    rows = [(folder / "eval" / "evals.jsonl").read_text() for folder in (one, tmp_path)]
    assert json.loads(rows[0])["frechet"] > 0 and rows[0] == rows[1]
    assert done.stdout.count("samples.npz") == 1  # one rank speaks


def test_killed_and_started_again_it_is_as_if_undisturbed(run, one, tmp_path):
    command = [sys.executable, "-m", "erw.cli", "sample", str(run), "--out", str(tmp_path / "out"), *LONG]
    first = subprocess.Popen(command, env=environment(OMP_NUM_THREADS="1"), stderr=subprocess.DEVNULL)
    blocks, deadline = tmp_path / "out" / "blocks", time.monotonic() + 120
    while len(list(blocks.glob("[0-9]*.npy"))) < 2 and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    kept = {p: p.stat().st_mtime_ns for p in blocks.glob("[0-9]*.npy")}
    assert 2 <= len(kept) < 6 and not (tmp_path / "out" / "samples.npz").exists()
    with one_thread():
        cli.main(command[3:])
    assert (tmp_path / "out" / "samples.npz").read_bytes() == (one / "long" / "samples.npz").read_bytes()
    sampled = json.loads((tmp_path / "out" / "manifest.json").read_text())["sampling"]["images"]
    assert sampled == 22 - sum(len(range(22)[4 * i : 4 * i + 4]) for i in map(int, (p.stem for p in kept)))
    assert np.load(tmp_path / "out" / "samples.npz")["arr_0"].shape == (22, 8, 8, 1)
