"""Our fast path trains what the published step trains: 200 losses from the same non-zero weights, on the same draws."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from launch import environment

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def curves() -> dict[str, list[float]]:
    """See `curves` in tests/support. A program of its own: Triton's interpreter would take hours."""
    env = environment(OMP_NUM_THREADS="1")
    env.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-W", "ignore", "tests/support/curves.py"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def distance(a: list[float], b: list[float]) -> float:
    """Mean absolute difference of two curves."""
    return statistics.mean(abs(x - y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("path", ["gpu", "cpu"])
def test_in_fp32_they_are_the_same_curve(curves, path):
    theirs, ours = curves["published fp32"], curves[f"ours {path} fp32"]
    assert theirs[-1] < theirs[0] - 0.1
    assert max(abs(x - y) for x, y in zip(theirs, ours, strict=True)) < 1e-5 * max(map(abs, theirs))


@pytest.mark.parametrize("path", ["gpu", "cpu"])
def test_in_bf16_they_are_as_near_as_the_published_step_is_to_itself_compiled(curves, path):
    theirs = curves["published bf16"]
    assert distance(theirs, curves[f"ours {path} bf16"]) <= 2 * distance(theirs, curves["published bf16 compiled"])
