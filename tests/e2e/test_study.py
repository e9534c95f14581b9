"""A study of two variants and two seeds at a two-hundredth of its budget: killed, started again, written down."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from erw.bench.convergence import figures, runs, words
from erw.bench.convergence.plan import plan
from erw.bench.convergence.study import read_study
from erw.errors import UserError
from launch import environment

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
ORDER = ["sit-0", "repa-0", "repa-1", "sit-1"]


SHARE = 0.005


def _command(out: Path) -> list[str]:
    tail = f"--variants sit repa --seeds 0 1 --share {SHARE}"
    return ["-m", "erw.bench.convergence", "digits", "--out", str(out), "--record", str(out / "study.json"), *tail.split()]


@pytest.fixture(scope="module")
def study(run_erw, tmp_path_factory):
    """(folder, what the first run left before the kill, what the second start said)."""
    out = tmp_path_factory.mktemp("study")
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
    partial = json.loads((out / "study.json").read_text())
    program, *arguments = " ".join(_command(out)[:2]), *_command(out)[2:]
    done = run_erw(*arguments, program=program)
    assert done.returncode == 0, done.stderr[-4000:]
    return out, left, partial, done.stdout


def test_it_goes_on_after_a_kill(study):
    out, left, partial, said = study
    assert {name: len(entry["runs"]) for name, entry in partial["variants"].items()} == {"sit": 1, "repa": 0}
    assert {file: (out / "sit-0" / file).stat().st_mtime_ns for file in left} == left
    assert "run 1 of 4" not in said
    assert [line for line in said.splitlines() if line.startswith("run ")] == [
        "run 2 of 4: REPA, seed 0", "run 3 of 4: REPA, seed 1", "run 4 of 4: SiT, seed 1"
    ]  # fmt: skip


def test_the_record_holds_every_run_whole(study):
    out, _, _, said = study
    record = json.loads((out / "study.json").read_text())
    assert record["settings"]["share"] == SHARE and record["settings"]["seeds"] == [0, 1]
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
    (sentence,) = words.lines(record, ("images",))
    assert sentence in said
    assert f"lower is better: {' < '.join(figures.ranking(record))}" in said


def test_a_study_run_twice_says_the_same(study, run_erw, tmp_path):
    """On a CPU every figure is equal but seconds, the killed and resumed run's too."""
    out, *_ = study
    (tmp_path / "again").mkdir()
    program, *arguments = " ".join(_command(tmp_path / "again")[:2]), *_command(tmp_path / "again")[2:]
    done = run_erw(*arguments, program=program)
    assert done.returncode == 0, done.stderr[-4000:]
    first, second = (json.loads((folder / "study.json").read_text()) for folder in (out, tmp_path / "again"))
    assert figures.ranking(first) == figures.ranking(second)
    for name, entry in first["variants"].items():
        for a, b in zip(entry["runs"], second["variants"][name]["runs"], strict=True):
            drop = [[{k: v for k, v in row.items() if k != "seconds"} for row in run["curve"]] for run in (a, b)]
            assert drop[0] == drop[1]


def test_runs_of_other_settings_or_machines_are_not_gone_on_with(study, monkeypatch):
    out, *_ = study
    digits = read_study("digits")

    def again(share):
        configs = {name: plan(digits, share)[name] for name in ("sit", "repa")}
        return runs.Runs(digits, out, out / "other.json", configs, [0, 1], share)

    with pytest.raises(UserError, match="sit-0 was run with other settings: name another folder"):
        again(0.02)
    seen = json.loads((out / "sit-0" / "environment.json").read_text())
    monkeypatch.setattr(runs, "environment", lambda: seen)
    assert again(SHARE).finished("sit", 1)
    later = seen | {"versions": seen["versions"] | {"date": "later", "commit": "another"}}
    monkeypatch.setattr(runs, "environment", lambda: later)
    assert again(SHARE).record()["variants"]["sit"]["runs"][0]["commit"] == seen["versions"]["commit"]
    monkeypatch.setattr(runs, "environment", lambda: seen | {"hardware": seen["hardware"] | {"threads": 64}})
    with pytest.raises(UserError, match="sit-0 was run on another machine, with other threads or versions"):
        again(SHARE)
    (out / "sit-0" / "environment.json").unlink()
    with pytest.raises(UserError, match="sit-0 is no run of a study"):
        again(SHARE)
