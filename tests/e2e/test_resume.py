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


@pytest.mark.parametrize("stage", STAGES)
def test_six_steps_equal_some_plus_resume_plus_the_rest(stage, run_jobs, tmp_path):
    # erw: inside the warm-up, at the hand-over (where the checkpoint still holds the warm-up) and after it.
    stops = {"sit": [3], "repa": [3], "erw": [2, 3, 4]}
    jobs = [job(name, stage, tmp_path / name, BATCH if len(stops[name]) > 1 else 3 * BATCH) for name in stops]
    jobs += [
        resumed(name, stage, tmp_path / f"{name}-{stop}", tmp_path / name, stop * BATCH)
        for name in stops
        for stop in stops[name]
    ]
    run_jobs(jobs)
    for name in stops:
        for stop in stops[name]:
            whole, parts = state_at(tmp_path / name, LAST), state_at(tmp_path / f"{name}-{stop}", LAST)
            assert difference(whole, parts) == 0.0, (name, stop)
            rows = [metrics(tmp_path / d) for d in (name, f"{name}-{stop}")]
            assert rows[0][-1]["loss"] == rows[1][-1]["loss"]
    handed = state_at(tmp_path / "erw", 3 * BATCH), state_at(tmp_path / "erw", 4 * BATCH)
    # Phase 1 keeps state for its own parameters only, and phase 2 adds the rest.
    assert set(handed[0]["exp_avg"]) < set(handed[1]["exp_avg"])
    assert not any(n.startswith(("blocks.1.", "blocks.2.", "final_layer.")) for n in handed[0]["exp_avg"])


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
