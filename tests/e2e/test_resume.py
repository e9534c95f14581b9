"""A resumed run is the same run, bit for bit: every method, every ZeRO stage, every phase, on two ranks."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from launch import environment
from states import difference, state_at
from tiny import BATCH, tiny

pytestmark = [pytest.mark.slow, pytest.mark.dist]

STAGES = {"zero0": "fp32", "zero1": "bf16", "zero2": "bf16", "zero3": "bf16"}
LAST = 6 * BATCH


def job(name: str, stage: str, out, save_every: int = 0):
    """A run of six steps."""
    engine = {"ds_config": stage, "precision": STAGES[stage]}
    return tiny(name, out, engine=engine, train={"save_every": save_every, "keep": 9})


def resumed(name: str, stage: str, out, origin: Path, images: int):
    """The same run from the origin's checkpoint at ``images``, elsewhere."""
    config = job(name, stage, out)
    return replace(config, train=replace(config.train, resume=str(origin / "checkpoints" / f"{images:012d}")))


# erw: inside the warm-up, at the hand-over (where the checkpoint still holds the warm-up) and after it.
STOPS = {"sit": [3], "repa": [3], "erw": [2, 3, 4]}


@pytest.fixture(scope="module")
def runs(run_jobs, tmp_path_factory):
    """Every method at every stage, whole and resumed, on two ranks: one launch, since starting costs more than running."""
    folder = tmp_path_factory.mktemp("resume")
    jobs = []
    for stage in STAGES:
        here = folder / stage
        jobs += [job(name, stage, here / name, BATCH if len(STOPS[name]) > 1 else 3 * BATCH) for name in STOPS]
        jobs += [
            resumed(name, stage, here / f"{name}-{stop}", here / name, stop * BATCH) for name in STOPS for stop in STOPS[name]
        ]
    run_jobs(jobs)
    return folder


@pytest.mark.parametrize(("name", "stop"), [(name, stop) for name in STOPS for stop in STOPS[name]])
@pytest.mark.parametrize("stage", STAGES)
def test_six_steps_equal_some_plus_resume_plus_the_rest(stage, name, stop, runs):
    whole, parts = runs / stage / name, runs / stage / f"{name}-{stop}"
    assert difference(state_at(whole, LAST), state_at(parts, LAST)) == 0.0
    assert metrics(whole)[-1]["loss"] == metrics(parts)[-1]["loss"]


@pytest.mark.parametrize("stage", STAGES)
def test_phase_one_keeps_state_for_its_own_parameters_only(stage, runs):
    warm, full = (set(state_at(runs / stage / "erw", images)["exp_avg"]) for images in (3 * BATCH, 4 * BATCH))
    assert warm < full
    assert not any(n.startswith(("blocks.1.", "blocks.2.", "final_layer.")) for n in warm)


def metrics(run: Path) -> list[dict]:
    return [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines() if "loss" in row]


def test_a_killed_run_goes_on_with_the_same_command(run_erw, run_jobs, tmp_path):
    """SIGKILL in the middle, half-written rubbish beside the checkpoints, then ``--resume auto``."""
    import signal
    import subprocess
    import sys
    import time

    config = job("erw", "zero1", tmp_path / "whole", BATCH)
    run_jobs([config], ranks=1)
    killed = replace(config, train=replace(config.train, out=str(tmp_path / "killed"), resume="auto"))
    jobs = tmp_path / "killed.json"
    from erw.settings import to_dict

    jobs.write_text(json.dumps([to_dict(killed)]))
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen([sys.executable, str(root / "tests/support/ranks.py"), str(jobs)],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment())  # fmt: skip
    deadline = time.time() + 120
    while not list((tmp_path / "killed" / "checkpoints").glob("0*")) and time.time() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    partial = tmp_path / "killed" / "checkpoints" / ".partial-000000000096"
    partial.mkdir(exist_ok=True)
    (partial / "weights.safetensors").write_bytes(b"cut short")
    run_jobs([killed], ranks=1)
    assert difference(state_at(tmp_path / "whole", LAST), state_at(tmp_path / "killed", LAST)) == 0.0
    seen = [row["images"] for row in metrics(tmp_path / "killed")]
    assert seen == sorted(set(seen)) and seen[-1] == LAST
