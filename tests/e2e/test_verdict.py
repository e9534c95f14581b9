"""A verdict of two variants and two seeds at a two-hundredth of the budget: killed, started again, written down and drawn."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from erw.bench import _verdict
from erw.bench import verdict as bench
from erw.errors import UserError
from launch import environment

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
ORDER = ["sit-0", "repa-0", "repa-1", "sit-1"]


SCALE = 0.005


def _command(out: Path) -> list[str]:
    tail = f"--variants sit repa --seeds 0 1 --images-scale {SCALE}"
    return ["-m", "erw.bench.verdict", "--out", str(out), "--record", str(out / "verdict.json"), *tail.split()]


@pytest.fixture(scope="module")
def verdict(run_erw, tmp_path_factory):
    """(folder, what the first run left before the kill, what the second start said)."""
    out = tmp_path_factory.mktemp("verdict")
    with (out / "log").open("wb") as log:
        first = subprocess.Popen([sys.executable, *_command(out)], cwd=ROOT, stdout=log, stderr=log,
                                 env=environment(OMP_NUM_THREADS="2"))  # fmt: skip
        deadline = time.monotonic() + 200
        # The second run has begun and evaluated once: its folder holds an unfinished run.
        while not (out / "repa-0" / "evals.jsonl").exists() and first.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        first.send_signal(signal.SIGKILL)
        first.wait(timeout=30)
    assert first.returncode == -signal.SIGKILL, (out / "log").read_text()[-2000:]
    left = {file: (out / "sit-0" / file).stat().st_mtime_ns for file in ("evals.jsonl", "accounts.json", "config.json")}
    partial = json.loads((out / "verdict.json").read_text())
    program, *arguments = " ".join(_command(out)[:2]), *_command(out)[2:]
    done = run_erw(*arguments, program=program)
    assert done.returncode == 0, done.stderr[-4000:]
    return out, left, partial, done.stdout


def test_it_goes_on_after_a_kill(verdict):
    out, left, partial, said = verdict
    assert {name: len(entry["runs"]) for name, entry in partial["variants"].items()} == {"sit": 1, "repa": 0}
    assert {file: (out / "sit-0" / file).stat().st_mtime_ns for file in left} == left
    assert "run 1 of 4" not in said
    assert [line for line in said.splitlines() if line.startswith("run ")] == [
        "run 2 of 4: REPA, seed 0", "run 3 of 4: REPA, seed 1", "run 4 of 4: SiT, seed 1"
    ]  # fmt: skip


def test_the_record_holds_every_run_whole(verdict):
    out, _, _, said = verdict
    record = json.loads((out / "verdict.json").read_text())
    assert record["settings"]["images_scale"] == SCALE and record["settings"]["seeds"] == [0, 1]
    assert [f"{name}-{seed}" for name, seed in record["settings"]["order"]] == ORDER
    assert set(record["hardware"]) >= {"cpu", "threads"} and record["versions"]["torch"]
    assert record["teachers"]["digits-contrastive"]["training_flops"] > 0
    last = {}
    for name, entry in record["variants"].items():
        assert "out" not in entry["settings"]["train"]
        for run in entry["runs"]:
            images = [row["images"] for row in run["curve"]]
            assert images == sorted(set(images)) and images[-1] == entry["settings"]["train"]["images"]
            assert run["accounts"]["images"] == images[-1] and {"date", "commit", "dirty"} <= set(run)
            assert {"frechet", "accuracy", "memorised"} <= set(run["curve"][0])
            last[name, run["seed"]] = run["curve"][-1]["frechet"]
    assert len(last) == 4 and len(set(last.values())) == 4
    (sentence,) = _verdict.lines(record, ("images",))
    assert sentence in said
    assert Image.open(out / "verdict.png").size[0] > 1500


def test_runs_of_other_settings_or_machines_are_not_gone_on_with(verdict, monkeypatch):
    out, *_ = verdict
    again = lambda scale: bench.Verdict(out, out / "other.json", bench.plan(["sit", "repa"], scale), [0, 1], scale)  # noqa: E731
    with pytest.raises(UserError, match="sit-0 was run with other settings: name another folder"):
        again(0.02)
    seen = json.loads((out / "sit-0" / "environment.json").read_text())
    monkeypatch.setattr(bench, "environment", lambda: seen)
    assert again(SCALE).finished("sit", 1)
    later = seen | {"versions": seen["versions"] | {"date": "later", "commit": "another"}}
    monkeypatch.setattr(bench, "environment", lambda: later)
    assert again(SCALE).record()["variants"]["sit"]["runs"][0]["commit"] == seen["versions"]["commit"]
    monkeypatch.setattr(bench, "environment", lambda: seen | {"hardware": seen["hardware"] | {"threads": 64}})
    with pytest.raises(UserError, match="sit-0 was run on another machine, with other threads or versions"):
        again(SCALE)
    (out / "sit-0" / "environment.json").unlink()
    with pytest.raises(UserError, match="sit-0 is no run of a verdict"):
        again(SCALE)
