"""Speed in the documentation: what records say, and nothing where there is none."""

import json
from pathlib import Path

import pytest

from erw.bench import speed
from erw.bench._record import RESULTS
from erw.errors import UserError

DOCS = Path(__file__).resolve().parents[2] / "docs"
EMPTY = "".join(f"<!-- {name} -->\nold\n<!-- /{name} -->\n" for name in ("speed cuda", "speed cpu", "speed over commits"))


def row(name: str, kind: str, images: float, **rest) -> dict:
    setup = {"phase": "full", "residual": "float32", "attention": "sdpa"} | rest
    return {
        "name": name, "kind": kind, "setup": setup, "status": "measured", "interleaved": True, "to_anchor": 1.0,
        "images_per_s": {"median": images, "p20": images, "p80": images}, "ms_per_step": {"median": 8000 / images},
        "faster_than": {"reference bf16": images / 2}, "times_floor": 1.5, "tflops": 1.0, "mfu": None, "peak_memory_gib": None,
        "profile": {"share": {"GEMM": 0.5, "attention": 0.2, "memory-bound": 0.3, "idle": None}, "launches": None,
                    "kernels": None},
    }  # fmt: skip


def put(folder: Path, date: str, commit: str, images: float, device_type: str = "cpu", dry_run: bool = False) -> None:
    """A record in ``folder`` whose last rung does ``images`` a second."""
    rows = [row("reference bf16", "reference", 2.0), row("ours plain", "ladder", 1.0), row("+ last", "ladder", images)]
    rows += [
        row("final, warm-up phase", "side", 99.0, phase="warmup"),
        {"name": "lost", "kind": "side", "status": "out of memory"},
    ]
    floor = {"phase": "full", "gemm_seconds": 1.0, "attention_seconds": {"sdpa": 0.5}, "optimizer": {"seconds": 0.25}}
    scene = {"model": "B/2", "tokens": 256, "batch": 8, "anchor": "reference bf16", "reference_agrees": None}
    scene |= {"floors": [floor | {"seconds": {"sdpa": 1.75}}], "rows": rows}
    environment = {"date": date, "commit": commit, "device": "Chip", "threads": 2, "torch": "2.14.1", "dirty": False}
    content = {
        "what": speed.WHAT,
        "dry_run": dry_run,
        "device_type": device_type,
        "environment": environment,
        "scenes": [scene],
    }
    (folder / f"{date}_chip_step_{commit}.json").write_text(json.dumps(content))


@pytest.fixture
def page(tmp_path) -> Path:
    (tmp_path / "page.md").write_text(EMPTY)
    return tmp_path / "page.md"


def test_without_records_the_page_says_not_measured(page, tmp_path):
    put(tmp_path, "2030-01-01", "dry", 5.0, dry_run=True)
    text = speed.written(page, tmp_path)
    assert text.count("not measured") == 2 and "No record yet." in text and "old" not in text


def test_the_newest_record_makes_the_table(page, tmp_path):
    put(tmp_path, "2030-01-02", "new", 8.0)
    put(tmp_path, "2030-01-01", "old", 5.0)
    speed.main(["--write", str(page), "--results", str(tmp_path)])
    text = page.read_text()
    assert "GPU: not measured" in text and "CPU: not measured" not in text
    assert "commit new" in text and "commit old" not in text
    assert "| + last | 8 (8 - 8) | 1000 | 4.00 | 1.50 |" in text
    assert "| lost | out of memory |" in text
    assert "floor, full phase: 1750 ms = GEMMs 1000 + attention (sdpa) 500 + optimizer's bytes 250" in text
    assert (tmp_path / "pictures" / "speed-over-commits.png").stat().st_size > 5000
    lines = [line.count("|") for line in text.splitlines() if line.startswith("|")]
    assert len(set(lines)) == 1


def test_history_follows_the_last_rung_by_date_and_hardware(tmp_path):
    put(tmp_path, "2030-01-02", "b", 8.0)
    put(tmp_path, "2030-01-01", "a", 5.0)
    put(tmp_path, "2030-01-03", "c", 900.0, device_type="cuda")
    found = speed.history(speed.records(tmp_path))
    lines = {"reference bf16": [("a", 2.0), ("b", 2.0)], "last rung": [("a", 5.0), ("b", 8.0)]}
    assert found["Chip, 2 threads, B/2, 256 tokens, batch 8"] == lines
    assert found["Chip, B/2, 256 tokens, batch 8"]["last rung"] == [("c", 900.0)]


def test_a_page_without_the_sections_is_named(tmp_path):
    (tmp_path / "page.md").write_text("nothing")
    with pytest.raises(UserError, match="speed cuda"):
        speed.written(tmp_path / "page.md", tmp_path)
    with pytest.raises(UserError, match="--write"):
        speed.written(tmp_path / "none.md", tmp_path)


def test_the_page_is_what_the_records_say():
    found = speed.records(RESULTS)
    text = (DOCS / "speed.md").read_text()
    assert all(speed.section(kind, found, DOCS) in text for kind in ("cuda", "cpu"))
