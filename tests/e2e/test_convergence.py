"""The demo's report: curves from the runs' own files, pictures, equal FLOPs, and a README that matches its records."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from erw.bench import _curves
from erw.bench.demo import METHODS, check_equal_flops
from erw.bench.report import RESULTS, rewritten
from erw.errors import UserError
from erw.plan import phases
from erw.presets import preset
from tiny import BATCH, tiny

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def runs(run_jobs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    jobs = []
    for name in METHODS:
        config = tiny(name, folder / name, sample={"steps": 2})
        jobs.append(replace(config, eval=replace(config.eval, name="digits", every=4 * BATCH, count=20)))
    run_jobs(jobs, ranks=1)
    return {name: folder / name for name in METHODS}


def test_the_summary_has_what_the_curves_need(runs, tmp_path):
    summary = json.loads(json.dumps(_curves.summarise(runs)))
    assert summary["teacher"]["training_flops"] > 0
    assert set(summary) == {"methods", "teacher", "hardware", "versions"} and list(summary["methods"]) == list(METHODS)
    for entry in summary["methods"].values():
        assert [row["images"] for row in entry["curve"]] == [4 * BATCH, 6 * BATCH]
        assert all(set(row) == {"images", "flops", "seconds", "frechet", "accuracy", "memorised"} for row in entry["curve"])
    _curves.draw_curves(summary, tmp_path / "curves.png")
    _curves.draw_samples(runs, tmp_path / "samples.png", per_class=1)
    for name in ("curves.png", "samples.png"):
        width, height = Image.open(tmp_path / name).size
        assert width > 800 and height > 200
    assert all(name in _curves.table(summary) for name in ("SiT", "REPA", "ERW"))


def test_a_finished_run_started_again_trains_and_evaluates_nothing(runs, run_jobs):
    before = {name: (run / "evals.jsonl").read_text() for name, run in runs.items()}
    config = tiny("sit", runs["sit"], sample={"steps": 2}, train={"resume": "auto"})
    run_jobs([replace(config, eval=replace(config.eval, name="digits", every=4 * BATCH, count=20))], ranks=1)
    assert before["sit"] == (runs["sit"] / "evals.jsonl").read_text()


def test_presets_of_the_digits_cost_the_same():
    from erw.plan import Costs

    totals = {}
    for name in METHODS:
        config = preset(f"digits-{name}")
        totals[name] = sum(Costs(config).per_image(phase) * images for phase, images in phases(config))
    assert max(totals.values()) < 1.005 * min(totals.values())


def test_unequal_flops_are_not_called_a_comparison():
    entry = lambda flops: {"curve": [{"flops": flops}]}  # noqa: E731
    check_equal_flops({"methods": {"a": entry(100.0), "b": entry(101.0)}})
    with pytest.raises(UserError, match="differ by more than 2%"):
        check_equal_flops({"methods": {"a": entry(100.0), "b": entry(103.0)}})


def test_the_readmes_tables_are_those_of_the_records():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert rewritten(text, ROOT / RESULTS) == text
    with pytest.raises(UserError, match="has no <!-- demo -->"):
        rewritten("no markers", ROOT / RESULTS)
