"""Profiled steps train like all others, and each phase leaves a trace and a page."""

import json

import pytest

from erw.profile.recorder import WARMUP_STEPS
from erw.profile.trace import PARTS, read_events
from states import difference, state_at
from tiny import BATCH, tiny

pytestmark = [pytest.mark.slow, pytest.mark.dist]

WARMUP, STEPS = 6, 14


@pytest.fixture(scope="module")
def runs(run_jobs, tmp_path_factory):
    """One run without, one with two profiled steps a phase, one whose phases end before the profile does."""
    folder = tmp_path_factory.mktemp("profile")
    engine = {"ds_config": "zero1", "precision": "bf16", "accumulation": 2}
    run_jobs([
        tiny("erw", folder / str(steps), images=STEPS * BATCH, engine=engine, train={"profile": steps, "save_every": 0},
             method={"warmup_images": WARMUP * BATCH})
        for steps in (0, 2, 99)
    ])  # fmt: skip
    return folder


def rows(run) -> list[dict]:
    clock = {"seconds", "images_per_second", "images_per_second_recent", "data_wait", "communication", "memory_gib",
             "slowest_rank", "slowest_seconds", "median_seconds", "gpu_hours/warmup", "gpu_hours/full"}  # fmt: skip
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in clock} for line in lines]


@pytest.mark.parametrize("steps", ["2", "99"])
def test_a_profiled_run_is_the_same_run_bit_for_bit(runs, steps):
    assert not (runs / "0" / "profile").exists()
    for images in (WARMUP * BATCH, STEPS * BATCH):
        assert difference(state_at(runs / "0", images), state_at(runs / steps, images)) == 0.0
    assert rows(runs / "0") == rows(runs / steps) and len(rows(runs / "0")) == STEPS + 1


@pytest.mark.parametrize(("phase", "first"), [("warmup", 0), ("full", WARMUP)])
def test_each_phase_leaves_a_page_and_a_trace(runs, phase, first):
    folder = runs / "2" / "profile"
    assert sorted(p.name for p in folder.iterdir()) == ["full.json.gz", "full.md", "warmup.json.gz", "warmup.md"]
    text = (folder / f"{phase}.md").read_text()
    start = first + WARMUP_STEPS
    assert f"- phase: {phase}, images {start * BATCH:,} to {(start + 2) * BATCH:,} (2 steps)" in text
    cells = {row[1]: row for row in ([c.strip() for c in line.split("|")] for line in text.splitlines()) if len(row) > 3}
    shares = [float(cells[name][-2].rstrip("%")) for name in (*PARTS, "other")]
    assert sum(shares) == pytest.approx(100, abs=1) and all(share >= 0 for share in shares)
    kinds = [float(cells[k][-2].rstrip("%")) for k in ("GEMM", "attention", "memory-bound", "communication", "idle")]
    assert sum(kinds) == pytest.approx(100, abs=1) and min(kinds[:3]) > 0
    assert len(text.splitlines()) < 60
    names = [e["name"] for e in read_events(folder / f"{phase}.json.gz") if e.get("cat") == "user_annotation"]
    assert names.count("erw::forward") == names.count("erw::backward") == 4 and names.count("erw::report") == 2


def test_a_phase_that_ends_first_is_profiled_to_its_end(runs):
    for phase, last in (("warmup", WARMUP), ("full", STEPS)):
        text = (runs / "99" / "profile" / f"{phase}.md").read_text()
        assert f" to {last * BATCH:,} (" in text


def test_profiling_is_booked_apart(runs):
    accounts = json.loads((runs / "2" / "accounts.json").read_text())
    assert accounts["other"]["profiling"] > 0
