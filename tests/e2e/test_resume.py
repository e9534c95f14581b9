"""A resumed run is the same run, bit for bit: every method, every ZeRO stage, every phase, on two ranks."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from erw.sample import generate, load_run
from launch import environment
from states import difference, relative, state_at
from tiny import BATCH, tiny

pytestmark = [pytest.mark.slow, pytest.mark.dist]

STAGES = {"zero0": "fp32", "zero1": "bf16", "zero2": "bf16", "zero3": "bf16"}
LAST = 6 * BATCH

# For each stage and precision: methods, and the steps after which they are stopped and resumed. ERW: inside the warm-up, at
# the hand-over (where the checkpoint still holds the warm-up) and after it.
SIT = {"sit": [3], "repa": [3], "erw": [2, 3, 4]}
DIT = {"dit": [3], "dit-repa": [3], "dit-erw": [2, 3, 4]}
STOPS: dict[tuple[str, str], dict[str, list[int]]] = {
    **{(stage, precision): SIT for stage, precision in STAGES.items()},
    ("zero0", "fp32"): SIT | DIT,
    ("zero2", "bf16"): SIT | DIT,
    ("zero2", "fp16"): {"erw": [4]},
    ("zero2_offload", "bf16"): {"erw": [4]},
    ("zero3_offload", "bf16"): {"erw": [4]},
}
CASES = [(*key, name, stop) for key, methods in STOPS.items() for name, stops in methods.items() for stop in stops]


def job(name: str, stage: str, precision: str, out, save_every: int = 0):
    """A run of six steps."""
    engine = {"ds_config": stage, "precision": precision}
    return tiny(name, out, engine=engine, train={"save_every": save_every, "keep": 9})


def resumed(config, out, images: int):
    """The same run from its checkpoint at ``images``, elsewhere."""
    origin = Path(config.train.out) / "checkpoints" / f"{images:012d}"
    return replace(config, train=replace(config.train, out=str(out), resume=str(origin)))


@pytest.fixture(scope="module")
def runs(run_jobs, tmp_path_factory):
    """Every case, whole and resumed, on two ranks: one launch, since starting costs more than running."""
    folder = tmp_path_factory.mktemp("resume")
    jobs = []
    for (stage, precision), methods in STOPS.items():
        here = folder / f"{stage}-{precision}"
        for name, stops in methods.items():
            whole = job(name, stage, precision, here / name, BATCH if len(stops) > 1 else stops[0] * BATCH)
            jobs += [whole, *(resumed(whole, here / f"{name}-{stop}", stop * BATCH) for stop in stops)]
    run_jobs(jobs)
    return folder


@pytest.mark.parametrize(("stage", "precision", "name", "stop"), CASES)
def test_six_steps_equal_some_plus_resume_plus_the_rest(stage, precision, name, stop, runs):
    if precision == "fp16" and not torch.ops.mkldnn._is_mkldnn_fp16_supported():
        pytest.skip("this CPU has no fp16 matmul")
    here = runs / f"{stage}-{precision}"
    whole, parts = here / name, here / f"{name}-{stop}"
    assert difference(state_at(whole, LAST), state_at(parts, LAST)) == 0.0
    assert metrics(whole)[-1]["loss"] == metrics(parts)[-1]["loss"]


@pytest.mark.parametrize("name", [*SIT, *DIT])
def test_every_method_and_backbone_samples(name, runs):
    config, model, _ = load_run(runs / "zero2-bf16" / name, torch.device("cpu"))
    few = replace(config.sample, steps=4, guidance=1.5)
    images = generate(model, config.objective, few, torch.arange(3), seed=0)
    assert images.shape == (3, 1, 8, 8) and images.isfinite().all() and images.std() > 0


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_offload_changes_the_place_not_the_numbers(stage, runs):
    there, here = (runs / f"{name}-bf16" / "erw" for name in (f"{stage}_offload", stage))
    assert relative(state_at(there, LAST), state_at(here, LAST)) < 1e-6


@pytest.mark.parametrize("stage", STAGES)
def test_phase_one_keeps_state_for_its_own_parameters_only(stage, runs):
    run = runs / f"{stage}-{STAGES[stage]}" / "erw"
    warm, full = (set(state_at(run, images)["exp_avg"]) for images in (3 * BATCH, 4 * BATCH))
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

    config = job("erw", "zero1", "bf16", tmp_path / "whole", BATCH)
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
