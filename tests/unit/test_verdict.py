"""The verdict's analysis on made-up records with known answers, its plan, and the README's tables of it."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from PIL import Image

from erw.bench import _verdict, _verdict_picture, report, verdict
from erw.bench._verdict import estimate, paired, reading, words
from erw.errors import UserError
from erw.plan import Costs, phases
from erw.presets import preset
from verdicts import LEVELS, SEEDS, curve, made_up


def _close(found: _verdict.Estimate, values: list[float]) -> None:
    interval = scipy.stats.t.interval(0.95, len(values) - 1, np.mean(values), scipy.stats.sem(values))
    assert (found.low, found.high) == pytest.approx(interval)
    assert (found.mean, found.deviation) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert found.count == len(values)


# ---- intervals, readings, pairs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 5, 12])
def test_intervals_are_scipys(count):
    values = np.random.default_rng(count).normal(3, 0.5, count).tolist()
    _close(estimate(values), values)


def test_one_seed_has_no_interval():
    with pytest.raises(UserError, match="needs two seeds, not 1"):
        estimate([1.0])


def test_a_reading_between_evaluations():
    """Halfway: the geometric mean of the distances, the arithmetic mean of the shares."""
    found = reading(curve(1.0, 40.0, 400), "seconds", 35.0)
    assert found["frechet"] == pytest.approx(math.sqrt(2 * 1))
    assert found["accuracy"] == pytest.approx(0.7) and found["memorised"] == pytest.approx(0.035)


@pytest.mark.parametrize("at, expected", [(100, 8.0), (300, 2.0), (400, 1.0)])
def test_a_reading_at_an_evaluation_is_that_evaluation(at, expected):
    assert reading(curve(1.0, 40.0, 400), "images", at)["frechet"] == expected


@pytest.mark.parametrize("at", [0, 99.9, 400.1])
def test_nothing_is_read_outside_a_curve(at):
    with pytest.raises(UserError, match=f"from 100 to 400 images cannot be read at {at:g}"):
        reading(curve(1.0, 40.0, 400), "images", at)
    with pytest.raises(UserError, match="without evaluations"):
        reading([], "images", at)


def test_pairs_are_of_one_seed():
    """Seeds that differ by far more than the variants do."""
    ours = {seed: {"frechet": 10.0 * seed + 0.1 * (seed % 2)} for seed in SEEDS}
    theirs = {seed: {"frechet": 10.0 * seed + 1.0} for seed in reversed(SEEDS)}
    _close(paired(ours, theirs), [-1.0, -0.9, -1.0, -0.9, -1.0])
    with pytest.raises(UserError, match="cannot be paired"):
        paired(ours, {seed: theirs[seed] for seed in SEEDS[1:]})


def test_equal_flops_are_the_ends():
    record = made_up()
    found = _verdict.estimates(record, "flops")
    for name, (level, _) in LEVELS.items():
        _close(found[name]["frechet"], [level + x for x in (0.1, -0.1, 0.05, -0.05, 0.0)])
        assert found[name]["accuracy"].mean == pytest.approx(0.8) and found[name]["memorised"].mean == pytest.approx(0.04)


@pytest.mark.parametrize("axis, at", [("seconds", 48.0), ("images", 1500.0)])
def test_equal_seconds_and_images_are_the_most_that_every_run_reached(axis, at):
    """A distance that halves with each quarter of a run is, short of the end by a share s of it, 2^(4 s) times the end's."""
    record = made_up()
    assert _verdict.common(record, axis) == at
    found = _verdict.readings(record, axis)
    for name, entry in record["variants"].items():
        for run in entry["runs"]:
            last = run["curve"][-1]
            expected = last["frechet"] * 2 ** (4 * (1 - at / last[axis]))
            assert found[name][run["seed"]]["frechet"] == pytest.approx(expected)


def test_a_place_before_some_first_evaluation_is_refused():
    record = made_up()
    for row in record["variants"]["sit"]["runs"][3]["curve"]:
        row["seconds"] += 48.5
    with pytest.raises(UserError, match="seconds cannot be read at 48"):
        _verdict.readings(record, "seconds")


def test_differences_are_those_of_the_pairs_that_were_run():
    shifts = [0.3, -0.1, 0.2, 0.1, 0.0]
    found = _verdict.differences(made_up(gap={"erw": shifts}), "flops")
    assert set(found) == set(_verdict.PAIRS)
    _close(found["erw", "repa"], [x - 0.5 for x in shifts])
    _close(found["erw", "sit"], [x - 1.5 for x in shifts])
    assert set(_verdict.differences(made_up(variants=("erw", "sit")), "images")) == {("erw", "sit")}


def test_an_unfinished_record_is_refused():
    record = made_up()
    record["variants"]["erw"]["runs"].pop()
    with pytest.raises(UserError, match="holds 24 of 25 runs: start python -m erw.bench.verdict again"):
        _verdict.estimates(record, "flops")


def test_unequal_flops_are_refused():
    record = made_up()
    for row in record["variants"]["erw"]["runs"][2]["curve"]:
        row["flops"] *= 1.04
    with pytest.raises(UserError, match=r"run from 1e\+12 to 1.04e\+12"):
        _verdict.lines(record)


# ---- words ------------------------------------------------------------------------------------------------------------


def _difference(mean: float, half: float) -> _verdict.Estimate:
    return _verdict.Estimate(mean=mean, deviation=0.1, low=mean - half, high=mean + half, count=5)


def test_words_for_below_above_and_neither():
    assert words("ERW", "REPA", _difference(-0.3, 0.2)) == "ERW below REPA by 0.30 (95% 0.10 to 0.50) over 5 seeds"
    assert words("ERW", "REPA", _difference(0.3, 0.2)) == "ERW above REPA by 0.30 (95% 0.10 to 0.50) over 5 seeds"
    neither = "no difference shown between ERW and REPA: ERW less REPA is -0.30 (95% -0.70 to 0.10) over 5 seeds"
    assert words("ERW", "REPA", _difference(-0.3, 0.4)) == neither
    assert words("ERW", "REPA", _difference(0.0, 0.0)).startswith("no difference shown")


def test_a_small_difference_keeps_its_digits():
    assert "by 0.012 (95% 0.002 to 0.022)" in words("ERW", "REPA", _difference(-0.012, 0.01))


def test_a_sentence_for_each_pair():
    found = _verdict.lines(made_up(gap={"erw-supervised": [0.5, -0.5, 0.4, -0.4, 0.0]}))
    assert len(found) == len(_verdict.PAIRS)
    assert found[0].startswith(
        "REPA below SiT by 1.00 (95% 1.00 to 1.00) over 5 seeds at equal FLOPs; at equal seconds below by"
    )
    assert found[-1].startswith("no difference shown between ERW (supervised) and REPA (supervised): ")
    turned = _verdict.lines(made_up(gap={"erw": [2.0] * 5}))
    assert turned[4].startswith("ERW above REPA by 1.50 (95% 1.50 to 1.50) over 5 seeds at equal FLOPs;")


# ---- plan -------------------------------------------------------------------------------------------------------------


def _cost(config) -> float:
    return sum(Costs(config).per_image(phase) * images for phase, images in phases(config))


def test_the_plan_is_the_presets_with_another_teacher_and_common_evaluations():
    configs = verdict.plan(list(verdict.VARIANTS))
    for name, config in configs.items():
        base = preset(f"digits-{name.split('-')[0]}")
        assert (config.train, config.method, config.optim, config.model) == (base.train, base.method, base.optim, base.model)
        assert config.eval.count == base.eval.count
    assert {name: config.teacher.name for name, config in configs.items()} == {
        "sit": "none", "repa": "digits-contrastive", "erw": "digits-contrastive",
        "repa-supervised": "digits-supervised", "erw-supervised": "digits-supervised",
    }  # fmt: skip
    every = {config.eval.every for config in configs.values()}
    assert len(every) == 1
    shortest, batch = min(config.train.images for config in configs.values()), configs["sit"].train.batch
    assert 0 <= every.pop() * verdict.EVALUATIONS - shortest < verdict.EVALUATIONS * batch


@pytest.mark.parametrize("scale", [1.0, 0.3, 0.02])
def test_the_plan_spends_the_same_whatever_the_scale(scale):
    configs = verdict.plan(list(verdict.VARIANTS), scale)
    costs = {name: _cost(config) for name, config in configs.items()}
    batch = max(_cost(config) * config.train.batch / config.train.images for config in configs.values())
    assert max(costs.values()) - min(costs.values()) <= 1.01 * batch
    assert costs["sit"] == pytest.approx(scale * _cost(preset("digits-sit")), rel=0.05)
    for config in configs.values():
        config.check()


def test_each_seed_begins_with_another_variant():
    order = verdict.schedule(["a", "b", "c"], [7, 8, 9, 10])
    assert [seed for _, seed in order] == [7] * 3 + [8] * 3 + [9] * 3 + [10] * 3
    assert "".join(name for name, _ in order) == "".join(["abc", "bca", "cab", "abc"])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--seeds", "3"], "--seeds must be two or more different numbers"),
        (["--seeds", "1", "1"], "--seeds must be two or more different numbers"),
        (["--images-scale", "0.5"], "name another file with --record"),
        (["--variants", "sit", "erw"], "name another file with --record"),
        (["--variants", "sit", "rep", "--record", "x.json"], "'rep' is not known"),
        (["--variants", "sit", "sit", "--record", "x.json"], "names one twice"),
        (["--images-scale", "2", "--record", "x.json"], "at most 1, not 2"),
        (["--record", "nowhere/x.json"], "there is no folder nowhere"),
    ],
)
def test_mistakes_are_said_in_a_line(arguments, message, capsys, tmp_path):
    with pytest.raises(SystemExit) as left:
        verdict.main(["--out", str(tmp_path), *arguments])
    assert left.value.code == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and message in said[0]
    assert not list(tmp_path.iterdir())


# ---- picture and README -----------------------------------------------------------------------------------------------


def test_the_picture_is_drawn(tmp_path):
    _verdict_picture.draw(made_up(), tmp_path / "verdict.png")
    width, height = Image.open(tmp_path / "verdict.png").size
    assert width > 1500 and height > 300


def _written(folder: Path, name: str, record: dict) -> Path:
    (folder / f"{name}-digits.json").write_text(json.dumps(record))
    return folder


def test_the_verdicts_table_is_that_of_its_record(tmp_path):
    table = report.verdict_table(_written(tmp_path, "verdict", made_up()))
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + len(LEVELS)
    ends = [4.1, 3.9, 4.05, 3.95, 4.0]
    low, high = scipy.stats.t.interval(0.95, 4, np.mean(ends), scipy.stats.sem(ends))
    assert rows[1].startswith(f"| SiT | none | 4.00 ({low:.2f} to {high:.2f}) | {np.std(ends, ddof=1):.2f} | ")
    assert rows[5].startswith("| ERW | digits-supervised | 2.40 ")
    assert rows[1].endswith("| 0.800 (0.800 to 0.800) | 0.040 (0.040 to 0.040) |")
    assert all(f"- {line}" in table for line in _verdict.lines(made_up()))
    assert "Equal seconds: 48.0, equal images: 1,500" in table
    assert "digits-contrastive 3.4e+11 FLOP, 8 seconds; digits-supervised 1.7e+11 FLOP, 4 seconds" in table


def test_a_trial_is_not_written_into_the_readme(tmp_path):
    record = made_up()
    record["settings"]["images_scale"] = 0.01
    with pytest.raises(UserError, match="is a trial on a share of the budget"):
        report.verdict_table(_written(tmp_path, "verdict", record))


def _swept(best: float) -> list[dict]:
    """Eight trials, the best three on five seeds; a trial on two seeds may look better than they do."""
    means = [best, best + 0.1, best + 0.2, best - 0.5, best + 1, best + 2, best + 9, best + 3]
    return [{"settings": {"depth": place, "lr": 0.004}, "runs": [{}] * (5 if place < 3 else 2), "frechet": mean}
            for place, mean in enumerate(means)]  # fmt: skip


def test_the_sweeps_table_is_that_of_its_record(tmp_path):
    methods = {"erw": _swept(2.5), "sit": _swept(4.0)[::-1], "repa": _swept(3.0)}
    table = report.sweep_table(_written(tmp_path, "sweep", {"methods": methods})).splitlines()
    assert table[2] == "| SiT | 8 | depth 0, lr 0.004 | 4.00 | 4.10 | 13.00 |"
    assert [row.split(" | ")[0] for row in table[2:]] == ["| SiT", "| REPA", "| ERW"]
    methods["repa"][7]["runs"] = [{}]
    with pytest.raises(UserError, match="sweep-digits.json is not finished"):
        report.sweep_table(_written(tmp_path, "sweep", {"methods": methods}))
    with pytest.raises(UserError, match="is of another layout"):
        report.sweep_table(_written(tmp_path, "sweep", {"methods": {"sit": [{"lr": 0.1, "frechet": 4.0}]}}))


def test_a_record_that_is_missing_or_broken_is_said_so(tmp_path):
    with pytest.raises(UserError, match=r"verdict-digits.json is missing: run python -m erw.bench.verdict"):
        report.verdict_table(tmp_path)
    (tmp_path / "verdict-digits.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        report.verdict_table(tmp_path)
