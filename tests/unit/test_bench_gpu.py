"""The one command for a GPU and its parts, tried without one."""

import json
import os
import subprocess
import sys

import pytest

from erw.bench import contract, gpu, sanitizer
from erw.bench._options import named
from erw.errors import UserError
from erw.kernels import SPECS
from erw.kernels._launch import INTERPRETED
from launch import environment

needs_kernels = pytest.mark.skipif(not INTERPRETED, reason="on a GPU the command itself is run")


def record_in(folder) -> dict:
    (path,) = folder.glob("*.json")
    return json.loads(path.read_text())


@needs_kernels
def test_contract_rows_say_what_was_kept(tmp_path, capsys):
    contract.main(["--dry-run", "--operations", "velocity_mse,adaln_modulate", "--out", str(tmp_path)])
    record = record_in(tmp_path)
    assert record["interpreted"] and record["dry_run"]
    assert {row["operation"]: row["status"] for row in record["rows"]} == {"velocity_mse": "kept", "adaln_modulate": "kept"}
    assert all(0 < row["largest_share"] <= 1 and row["tensors"] >= 4 and row["seconds"] > 0 for row in record["rows"])
    assert "adaln_modulate" in capsys.readouterr().out


@needs_kernels
def test_a_broken_contract_is_told_and_fails(tmp_path, capsys, monkeypatch):
    from dataclasses import replace

    (spec,) = (s for s in SPECS if s.name == "velocity_mse")
    wrong = replace(spec, op=lambda velocity, target: spec.op(velocity, target) * 1.001)
    raising = replace(spec, op=lambda velocity, target: 1 / 0)
    for planted, status in ((wrong, "broken"), (raising, "failed: ZeroDivisionError: division by zero")):
        monkeypatch.setitem(contract._BY_NAME, "velocity_mse", planted)
        with pytest.raises(SystemExit) as exit_:
            contract.main(["--dry-run", "--operations", "velocity_mse", "--out", str(tmp_path / status[:6])])
        assert exit_.value.code == 1
        assert record_in(tmp_path / status[:6])["rows"][0]["status"] == status
    assert "exceeds" in capsys.readouterr().out


@needs_kernels
def test_contract_without_time_says_so(tmp_path, capsys):
    contract.main(["--dry-run", "--minutes", "0", "--operations", "velocity_mse", "--out", str(tmp_path)])
    assert contract.OUT_OF_TIME in capsys.readouterr().out


def tool(folder, summary: dict[str, str], code: int = 0):
    """A stand-in for compute-sanitizer: runs the program, then prints a tool's summary."""
    path = folder / "bin" / "compute-sanitizer"
    path.parent.mkdir()
    lines = "\n".join(f"    {name}) echo '========= {text}';;" for name, text in summary.items())
    path.write_text(f'#!/bin/sh\n"$3" "$4" "$5" "$6" "$7" "$8" "$9" || exit 3\ncase $2 in\n{lines}\nesac\nexit {code}\n')
    path.chmod(0o755)
    return path.parent


@needs_kernels
@pytest.mark.slow
@pytest.mark.parametrize(
    ("memcheck", "status"),
    [("ERROR SUMMARY: 0 errors", "clean"), ("ERROR SUMMARY: 2 errors", "findings"), ("gone", "failed: ========= gone")],
)
def test_sanitizer_reads_the_tools_summaries(memcheck, status, tmp_path, monkeypatch):
    summaries = {"memcheck": memcheck, "racecheck": "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)"}
    monkeypatch.setenv("PATH", f"{tool(tmp_path, summaries)}:{os.environ['PATH']}")
    # The stand-in passes the first arguments on: operations, but not --dry-run, which a CPU then needs.
    monkeypatch.setattr(sanitizer, "found_by", _found_in_process(sanitizer.found_by))
    arguments = ["--dry-run", "--operations", "velocity_mse", "--out", str(tmp_path / "out")]
    if status == "clean":
        sanitizer.main(arguments)
    else:
        with pytest.raises(SystemExit) as exit_:
            sanitizer.main(arguments)
        assert exit_.value.code == 1
    assert [row["status"] for row in record_in(tmp_path / "out")["rows"]] == [status, "clean"]


def _found_in_process(found_by):
    return lambda tool, program, arguments, seconds: found_by(tool, program, ["--dry-run", *arguments[:2]], seconds)


def test_sanitizer_that_is_missing_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(SystemExit) as exit_:
        sanitizer.main(["--dry-run", "--out", str(tmp_path)])
    assert exit_.value.code == 2
    assert "compute-sanitizer is not on the path" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_names_are_checked():
    assert named("--x", "", ["a", "b"]) == ["a", "b"] and named("--x", "b", ["a", "b"]) == ["b"]
    with pytest.raises(UserError, match="--x: 'c' is not known"):
        named("--x", "a,c", ["a", "b"])


def _run(command: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment())


@needs_kernels
@pytest.mark.slow
def test_the_one_command_runs_its_parts_and_goes_on_after_a_failure(tmp_path):
    command = [sys.executable, "-m", "erw.bench.gpu", "--dry-run", "--minutes", "0.7", "--out", str(tmp_path)]
    done = _run([*command, "--commit", "abc"])
    ends = dict(line.split(maxsplit=1) for line in done.stdout.strip().splitlines()[-len(gpu.PARTS) :])
    # compute-sanitizer cannot look into the interpreter.
    assert ends.pop("sanitizer").startswith("ended with exit code")
    assert set(ends.values()) == {"done"} and done.returncode == 1, done.stdout + done.stderr
    kinds = {json.loads(path.read_text())["what"] for path in tmp_path.glob("*.json")}
    assert {"contract", "kernels"} <= kinds
    again = _run([*command, "--parts", "nothing"])
    assert again.returncode == 2 and "--parts: 'nothing' is not known" in again.stderr
