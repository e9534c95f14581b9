"""What is said of a study's record: sentences, tables, pictures, pages."""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from PIL import Image

from erw.bench import report as readme
from erw.bench.convergence import figures, report, sweep, words
from erw.bench.convergence.figures import Estimate
from erw.bench.convergence.picture import draw
from erw.bench.convergence.study import names, read_study
from erw.errors import UserError
from erw.settings import to_dict
from studies import LEVELS, made_up

ROOT = Path(__file__).resolve().parents[2]


def _difference(mean: float, half: float) -> Estimate:
    return Estimate(mean=mean, deviation=0.1, low=mean - half, high=mean + half, count=5)


def test_words_for_below_above_and_neither():
    assert words.words("ERW", "REPA", _difference(-0.3, 0.2)) == "ERW below REPA by 0.30 (95% 0.10 to 0.50) over 5 seeds"
    assert words.words("ERW", "REPA", _difference(0.3, 0.2)) == "ERW above REPA by 0.30 (95% 0.10 to 0.50) over 5 seeds"
    neither = "no difference shown between ERW and REPA: ERW less REPA is -0.30 (95% -0.70 to 0.10) over 5 seeds"
    assert words.words("ERW", "REPA", _difference(-0.3, 0.4)) == neither
    assert words.words("ERW", "REPA", _difference(0.0, 0.0)).startswith("no difference shown")


def test_a_small_difference_keeps_its_digits():
    assert "by 0.012 (95% 0.002 to 0.022)" in words.words("ERW", "REPA", _difference(-0.012, 0.01))


def test_a_sentence_for_each_pair():
    found = words.lines(made_up(gap={"erw-supervised": [0.5, -0.5, 0.4, -0.4, 0.0]}))
    assert len(found) == 6
    assert found[0].startswith(
        "REPA below SiT by 1.00 (95% 1.00 to 1.00) over 5 seeds at equal FLOPs; at equal seconds below by"
    )
    assert found[-1].startswith("no difference shown between ERW (supervised) and REPA (supervised): ")
    turned = words.lines(made_up(gap={"erw": [2.0] * 5}))
    assert turned[4].startswith("ERW above REPA by 1.50 (95% 1.50 to 1.50) over 5 seeds at equal FLOPs;")


def test_the_picture_is_drawn(tmp_path):
    draw(made_up(), tmp_path / "study.png")
    width, height = Image.open(tmp_path / "study.png").size
    assert width > 1500 and height > 300


def _kept(folder: Path, record: dict) -> Path:
    report.record_file("digits", folder).write_text(json.dumps(record))
    return folder


def test_the_result_is_that_of_the_record(tmp_path):
    text = readme.verdict(_kept(tmp_path, made_up()))
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + len(LEVELS) + 2 + 2
    ends = [4.1, 3.9, 4.05, 3.95, 4.0]
    low, high = scipy.stats.t.interval(0.95, 4, np.mean(ends), scipy.stats.sem(ends))
    assert rows[2].startswith(f"| SiT | none | 4.00 ({low:.2f} to {high:.2f}) | {np.std(ends, ddof=1):.2g} | ")
    assert rows[6].startswith("| ERW (supervised) | digits-supervised | 2.40 ")
    assert rows[2].endswith("| 0.800 (0.800 to 0.800) | 0.040 (0.040 to 0.040) |")
    assert all(f"- {line}" in text for line in words.lines(made_up()))
    assert "Equal seconds: 48, equal images: 1,500" in text
    assert "digits-contrastive 3.4e+11 FLOP, 8 seconds; digits-supervised 1.7e+11 FLOP, 4 seconds" in text


def test_what_may_be_concluded_follows_from_the_intervals():
    said = words.conclusions(made_up(gap={"erw-supervised": [0.5, -0.5, 0.4, -0.4, 0.0]}))
    assert "ERW below REPA" in said[0] and "ERW (supervised) below REPA" not in said[0]
    assert "a difference between ERW (supervised) and REPA (supervised)" in said[1]
    assert "6 comparisons" in said[2]
    unswept = made_up()
    unswept["study"]["sweep"] = None
    assert any("not swept" in line for line in words.conclusions(unswept))


def test_the_best_comes_first():
    assert figures.ranking(made_up())[0] in ("repa-supervised", "erw-supervised") and figures.ranking(made_up())[-1] == "sit"


def test_a_trial_is_not_written_down_as_a_result(tmp_path):
    record = made_up()
    record["settings"]["share"] = 0.01
    with pytest.raises(UserError, match="is a trial on a share of the budget"):
        readme.verdict(_kept(tmp_path, record))


def _swept(trials: list, best: float) -> list[dict]:
    """The best three on five seeds; a trial on two seeds may look better than they do."""
    means = [best, best + 0.1, best + 0.2, best - 0.5, best + 1, best + 2, best + 9, best + 3]
    return [{**to_dict(trial), "runs": [{}] * (5 if place < 3 else 2), "frechet": mean}
            for place, (trial, mean) in enumerate(zip(trials, means, strict=True))]  # fmt: skip


def test_the_sweeps_table_is_that_of_its_record(tmp_path):
    study = read_study("digits")
    trials = study.sweep.trials
    rows = {"sit": _swept(trials["sit"], 4.0)[::-1], "repa": _swept(trials["repa"], 3.0), "erw": _swept(trials["erw"], 2.5)}
    report.sweep_file("digits", tmp_path).write_text(json.dumps({"methods": rows}))
    table = readme.sweep(tmp_path).splitlines()
    assert table[2] == "| SiT | 8 | lr 0.0015 | 4.00 | 4.10 | 13.00 |"
    assert [row.split(" | ")[0] for row in table[2:]] == ["| SiT", "| REPA", "| ERW"]
    assert sweep.unlike_the_choice(study, {"methods": rows}) == ["sit", "repa", "erw"]
    assert sweep.edges(study, {"methods": {"sit": rows["sit"]}}) == [
        "SiT's choice has the smallest lr (0.0015) that was tried: a better one may lie beyond."
    ]
    rows["repa"][7]["runs"] = [{}]
    report.sweep_file("digits", tmp_path).write_text(json.dumps({"methods": rows}))
    with pytest.raises(UserError, match="sweep-digits.json is not finished"):
        readme.sweep(tmp_path)


def test_the_presets_are_the_sweeps_choice():
    study = read_study("digits")
    found = json.loads((ROOT / report.sweep_file("digits")).read_text())
    assert sweep.unlike_the_choice(study, found) == []


@pytest.mark.parametrize("name", names())
def test_a_page_is_that_of_its_record(name):
    """Every record in bench/results has its page, and the page is what the command writes."""
    file, page = ROOT / report.record_file(name), ROOT / report.DOCS / f"{name}.md"
    if not file.exists():
        pytest.skip(f"{name} has not been run: no {report.record_file(name)}")
    record = json.loads(file.read_text())
    assert report.report(read_study(name), record, ROOT / report.RESULTS).replace(f"{ROOT}/", "") == page.read_text()


def test_a_record_that_is_missing_or_broken_is_said_so(tmp_path):
    with pytest.raises(UserError, match=r"study-digits.json is missing: run python -m erw.bench.convergence digits"):
        readme.verdict(tmp_path)
    report.record_file("digits", tmp_path).write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        readme.verdict(tmp_path)
