"""The attention table: what ran, how wrong it was and what was seen running; nothing of a GPU where none was."""

import json
from dataclasses import replace

import pytest
import torch

from erw.bench import attention
from erw.bench._attention_table import UNTESTED, newest, table
from erw.bench._section import with_section
from erw.bench._timing import Deadline
from erw.errors import UserError
from erw.kernels.attention import BACKENDS, Problem

PROBLEM = Problem(1, 2, 20, 16, torch.float32, torch.device("cpu"))
MATRIX = [(name, width, tokens) for width in (64, 72) for tokens in (256, 257, 1024) for name in BACKENDS]
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="says what a CPU cannot do")


@no_gpu
def test_dry_run_records_every_backend(tmp_path, capsys):
    attention.main(["--dry-run", "--out", str(tmp_path), "--head-dims", "8,72", "--tokens", "33"])
    (path,) = tmp_path.iterdir()
    record = json.loads(path.read_text())
    assert "dry-run-attention" in path.name
    assert record["dry_run"] and record["finished"] and record["device_type"] == "cpu"
    assert [(r["backend"], r["head_width"], r["tokens"]) for r in record["rows"]] == [
        (n, w, 33) for w in (8, 72) for n in BACKENDS
    ]
    for row in record["rows"]:
        if row["backend"] not in ("math", "sdpa", "flash", "matmul"):
            assert row["status"] == "unusable" and row["reason"] and "ms" not in row
            continue
        assert row["status"] == "usable" and row["reason"] is None
        assert all(1e-9 < row["error"][part] < 2e-6 for part in ("out", "dq", "dk", "dv"))
        assert all(0 < row["ms"][way]["p20"] <= row["ms"][way]["median"] <= row["ms"][way]["p80"] for way in row["ms"])
        assert set(row["ms"]) == {"forward", "backward"}
        if row["backend"] != "matmul":  # whose Python counts for more at this size
            assert ("flash_attention_for_cpu" in row["kernel"]["forward"]) == (row["backend"] != "math")
    shown = capsys.readouterr().out
    assert "dry run: the times say nothing about speed" in shown
    kernels = [line for line in shown.splitlines() if line.startswith(("sdpa ", "flash "))]
    assert len(kernels) == 4 and all("_scaled_dot_product_flash_attention_for_cpu" in line for line in kernels)
    assert "fa2       8 x 33, 72 x 33: unusable: No module named 'flash_attn'" in shown


def test_errors_show_a_wrong_backend(monkeypatch):
    true = attention.attention_backend

    def skewed(name):
        run = true(name)
        return (lambda q, k, v: run(q, k * 1.01, v)) if name == "sdpa" else run

    monkeypatch.setattr(attention, "attention_backend", skewed)
    found = attention.errors(["math", "sdpa"], PROBLEM)
    assert max(found["math"].values()) < 1e-6
    assert all(1e-4 < found["sdpa"][part] < 0.1 for part in ("out", "dq", "dk"))
    state = torch.get_rng_state()
    again = attention.errors(["math"], PROBLEM)
    assert again["math"] == found["math"] and torch.equal(state, torch.get_rng_state())


def test_what_the_time_did_not_reach_is_untested_and_a_killed_run_leaves_what_it_had(monkeypatch):
    seen = []
    problems = [PROBLEM, replace(PROBLEM, tokens=21)]
    monkeypatch.setattr(attention, "measure", lambda problem, rounds, deadline: [{"tokens": problem.tokens}])
    rows = attention.run(problems, rounds=2, deadline=Deadline(60), report=lambda rows: seen.append(len(rows)))
    assert seen == [1, 2] and len(rows) == 2
    rows = attention.run(problems, rounds=2, deadline=Deadline(1), report=lambda rows: None)
    assert len(rows) == 2 * len(BACKENDS) and {(r["status"], r["reason"]) for r in rows} == {(UNTESTED, "out of time")}


def test_the_kernel_named_is_the_one_that_took_longest():
    a = torch.randn(1000, 1000)
    assert attention.longest_kernel(lambda: (a @ a, a + 1), torch.device("cpu")) == "aten::mm"
    assert attention.longest_kernel(lambda: None, torch.device("cpu")) is None


def record_of(device_type: str, *, dry_run=False, date="2030-01-01T00:00:00+00:00", tokens=(256, 257), **changes) -> dict:
    """A record such as the command writes, of figures made up for the test."""
    environment = {"date": date, "device": f"test {device_type}", "torch": "0", "commit": "abc"}
    rows = [
        {"backend": "flash", "head_width": 72, "tokens": t, "batch": 3, "heads": 5, "dtype": "bfloat16", "status": "usable",
         "reason": None, "error": {"out": 1e-3, "dq": 2e-3, "dk": 4e-3, "dv": 3e-3},
         "ms": {way: {"median": 2.0, "p20": 1.5, "p80": 2.5} for way in ("forward", "backward")},
         "kernel": {"forward": "flash_fwd<72>", "backward": None}}
        for t in tokens
    ]  # fmt: skip
    rows.append({"backend": "fa4", "head_width": 64, "tokens": 256, "status": "unusable", "reason": "no | package. Really"})
    content = {"what": "attention", "dry_run": dry_run, "device_type": device_type, "environment": environment, "rows": rows}
    return content | changes


def write(folder, name: str, record: dict) -> None:
    (folder / f"{name}_attention.json").write_text(json.dumps(record))


def test_without_a_gpu_record_every_gpu_cell_says_untested(tmp_path):
    write(tmp_path, "cpu", record_of("cpu", dry_run=True))
    write(tmp_path, "gpu-dry", record_of("cuda", dry_run=True))
    lines = table(tmp_path, MATRIX).splitlines()
    cells = [[cell.strip() for cell in line.split(" | ")] for line in lines[2:-2]]
    assert all(row[3:9] == [UNTESTED, *["-"] * 5] for row in cells)
    named = [(row[0].lstrip("| "), w, t) for row in cells for w in row[1].split(", ") for t in row[2].split(", ")]
    assert sorted(named) == sorted((name, str(width), str(tokens)) for name, width, tokens in MATRIX)
    assert "| flash | 72 | 256, 257 | untested | - | - | - | - | - | 1.0e-03 / 4.0e-03 |" in lines
    assert "| fa4 | 64 | 256 | untested | - | - | - | - | - | no: no \\| package |" in lines
    assert "ms" not in "".join(lines[2:]) and lines[-1].startswith("GPU: no record; `untested` until")


def test_rows_are_joined_only_where_all_that_they_name_says_the_same(tmp_path):
    record = record_of("cpu", tokens=())
    (like,) = record_of("cpu", tokens=(256,))["rows"][:1]
    record["rows"] = [like | {"head_width": width, "tokens": tokens} for width, tokens in ((64, 1024), (72, 256))]
    write(tmp_path, "cpu", record)
    rows = [line for line in table(tmp_path, MATRIX).splitlines() if line.startswith("| flash") and "1.0e-03" in line]
    assert [row.split(" | ")[1:3] for row in rows] == [["64", "1024"], ["72", "256"]]


def test_a_gpu_record_fills_its_places_and_no_others(tmp_path):
    write(tmp_path, "old", record_of("cuda", date="2029-01-01T00:00:00+00:00", tokens=(1024,)))
    write(tmp_path, "new", record_of("cuda"))
    lines = table(tmp_path, MATRIX).splitlines()
    told = "usable | 1.0e-03 / 4.0e-03 | 2.000 (1.500-2.500) | 2.000 (1.500-2.500) | flash_fwd&lt;72> | - | untested |"
    assert f"| flash | 72 | 256, 257 | {told}" in lines
    assert "| flash | 72 | 1024 | untested | - | - | - | - | - | untested |" in lines
    assert "| fa4 | 64 | 256 | no: no \\| package. Really | - | - | - | - | - | untested |" in lines
    assert lines[-1].startswith("GPU: test cuda, torch 0, commit abc, batch 3, 5 heads, bfloat16.")


def test_records_that_are_something_else_are_left_alone(tmp_path):
    write(tmp_path, "other", {"what": "kernels"})
    assert newest(tmp_path, "cuda") is None
    (tmp_path / "broken_attention.json").write_text("{")
    with pytest.raises(UserError, match="broken_attention.json is not JSON"):
        newest(tmp_path, "cuda")


def test_write_touches_its_section_alone(tmp_path):
    file, records = tmp_path / "kernels.md", tmp_path / "records"
    records.mkdir()
    file.write_text("before\n<!-- attention -->\nold\n<!-- /attention -->\nafter\n")
    attention.main(["--write", str(file), "--out", str(records)])
    text = file.read_text()
    assert text.startswith("before\n<!-- attention -->\n| backend |") and text.endswith("<!-- /attention -->\nafter\n")
    assert "old" not in text and not list(records.iterdir())
    attention.main(["--write", str(file), "--out", str(records)])
    assert file.read_text() == text


def test_a_section_that_is_missing_is_named():
    with pytest.raises(UserError, match="a.md has no <!-- speed --> ... <!-- /speed -->"):
        with_section("text", "speed", "body", "a.md")
    assert with_section("<!-- a -->\n<!-- /a -->", "a", r"\1 {x}", "") == "<!-- a -->\n\\1 {x}\n<!-- /a -->"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        pytest.param([], "--dry-run", marks=no_gpu),
        (["--dry-run", "--tokens", "12,x"], "--tokens takes whole numbers"),
        (["--dry-run", "--head-dims", "0"], "--head-dims must be at least 1"),
        (["--write", "no/such/file.md"], "--write no/such/file.md cannot be read"),
    ],
)
def test_wrong_options_end_in_one_line(arguments, named, capsys, tmp_path):
    with pytest.raises(SystemExit) as exit_:
        attention.main([*arguments, "--out", str(tmp_path)])
    error = capsys.readouterr().err.strip()
    assert exit_.value.code == 2 and named in error and len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())
