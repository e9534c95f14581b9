"""What is read off a study's record, made up and with known answers: intervals, pairs, what it takes to get as far."""

import math

import numpy as np
import pytest
import scipy.stats

from erw.bench.convergence import figures, targets, words
from erw.bench.convergence.figures import Estimate, estimate, paired, reading
from erw.bench.convergence.study import read_study
from erw.errors import UserError
from studies import LEVELS, SEEDS, curve, made_up

FIGURES = ("frechet", "accuracy", "memorised")


def _close(found: Estimate, values: list[float]) -> None:
    interval = scipy.stats.t.interval(0.95, len(values) - 1, np.mean(values), scipy.stats.sem(values))
    assert (found.low, found.high) == pytest.approx(interval)
    assert (found.mean, found.deviation) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert found.count == len(values)


@pytest.mark.parametrize("count", [2, 3, 5, 12])
def test_intervals_are_scipys(count):
    values = np.random.default_rng(count).normal(3, 0.5, count).tolist()
    _close(estimate(values), values)


def test_one_seed_has_no_interval():
    with pytest.raises(UserError, match="needs two seeds, not 1"):
        estimate([1.0])


def test_a_reading_between_evaluations():
    """Halfway: the geometric mean of the distances, the arithmetic mean of the shares."""
    found = reading(curve(1.0, 40.0, 400), "seconds", 35.0, FIGURES)
    assert found["frechet"] == pytest.approx(math.sqrt(2 * 1))
    assert found["accuracy"] == pytest.approx(0.7) and found["memorised"] == pytest.approx(0.035)


@pytest.mark.parametrize("at, expected", [(100, 8.0), (300, 2.0), (400, 1.0)])
def test_a_reading_at_an_evaluation_is_that_evaluation(at, expected):
    assert reading(curve(1.0, 40.0, 400), "images", at, FIGURES)["frechet"] == expected


@pytest.mark.parametrize("at", [0, 99.9, 400.1])
def test_nothing_is_read_outside_a_curve(at):
    with pytest.raises(UserError, match=f"from 100 to 400 images cannot be read at {at:g}"):
        reading(curve(1.0, 40.0, 400), "images", at, FIGURES)
    with pytest.raises(UserError, match="without evaluations"):
        reading([], "images", at, FIGURES)


def test_pairs_are_of_one_seed():
    """Seeds that differ by far more than the variants do."""
    ours = {seed: {"frechet": 10.0 * seed + 0.1 * (seed % 2)} for seed in SEEDS}
    theirs = {seed: {"frechet": 10.0 * seed + 1.0} for seed in reversed(SEEDS)}
    _close(paired(ours, theirs, "frechet"), [-1.0, -0.9, -1.0, -0.9, -1.0])
    with pytest.raises(UserError, match="cannot be paired"):
        paired(ours, {seed: theirs[seed] for seed in SEEDS[1:]}, "frechet")


def test_the_end_is_at_equal_flops():
    record = made_up()
    found = figures.estimates(record, "end")
    for name, (level, _) in LEVELS.items():
        _close(found[name]["frechet"], [level + x for x in (0.1, -0.1, 0.05, -0.05, 0.0)])
        assert found[name]["accuracy"].mean == pytest.approx(0.8) and found[name]["memorised"].mean == pytest.approx(0.04)


@pytest.mark.parametrize("axis, at", [("seconds", 48.0), ("images", 1500.0)])
def test_equal_seconds_and_images_are_the_most_that_every_run_reached(axis, at):
    """A distance that halves with each quarter of a run is, short of the end by a share s of it, 2^(4 s) times the end's."""
    record = made_up()
    assert figures.common(record, axis) == at
    found = figures.readings(record, axis)
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
        figures.readings(record, "seconds")


def test_runs_that_spent_different_amounts_are_read_where_the_first_of_them_ended():
    record = made_up(variants=("sit", "erw"))
    even = figures.readings(record, "end")
    assert figures.uneven(record) is None and "Runs spent" not in words.how_read(record)
    for run in record["variants"]["erw"]["runs"]:
        for row in run["curve"]:
            row["flops"] *= 1.5
    assert figures.uneven(record) == (1e12, 1.5e12)
    found = figures.readings(record, "end")
    assert found["sit"] == even["sit"]
    for seed, row in found["erw"].items():
        assert row["frechet"] == pytest.approx(even["erw"][seed]["frechet"] * 2 ** (4 / 3)), "a third of its curve is left"
    assert "Runs spent from 1e+12 to 1.5e+12 FLOPs: at equal FLOPs is where the first of them ended" in words.how_read(record)


def test_an_axis_that_some_curve_begins_too_late_for_is_left_out_and_named():
    record = made_up()
    for row in record["variants"]["sit"]["runs"][3]["curve"]:
        row["seconds"] += 48.5
    assert figures.axes(record) == ["images"]
    assert "equal seconds" not in words.result_table(record) + " ".join(words.lines(record))
    assert "Nothing is read at equal seconds: the shortest run took 48, and another's first" in words.how_read(record)


def test_a_step_divides_into_shares_of_what_its_parts_took():
    record = made_up(variants=("sit", "erw"))
    assert words.parts_table(record) == ""
    for place, run in enumerate(record["variants"]["erw"]["runs"]):
        run["accounts"]["phases"]["train"]["parts"] = {"data wait": 0.1 * place, "forward": 1.0 - 0.1 * place, "teacher": 1.0}
    assert words.parts_table(record).splitlines()[2:] == ["| ERW | train | 10.0% | 40.0% | 50.0% |"]


def test_differences_are_those_of_the_pairs_that_were_run():
    shifts = [0.3, -0.1, 0.2, 0.1, 0.0]
    found = figures.differences(made_up(gap={"erw": shifts}), "end")
    assert list(found) == [tuple(pair) for pair in read_study("digits").compare]
    _close(found["erw", "repa"], [x - 0.5 for x in shifts])
    _close(found["erw", "sit"], [x - 1.5 for x in shifts])
    assert set(figures.differences(made_up(variants=("erw", "sit")), "images")) == {("erw", "sit")}


def test_an_unfinished_record_is_refused():
    record = made_up()
    record["variants"]["erw"]["runs"].pop()
    with pytest.raises(UserError, match="holds 24 of 25 runs: start python -m erw.bench.convergence digits again"):
        figures.estimates(record, "end")


@pytest.mark.parametrize("factor, spent", [(1.01, None), (1.04, (1e12, 1.04e12))])
def test_flops_that_differ_by_more_than_a_little_are_uneven(factor, spent):
    record = made_up()
    for row in record["variants"]["erw"]["runs"][2]["curve"]:
        row["flops"] *= factor
    assert figures.uneven(record) == spent
    assert ("Runs spent from 1e+12 to 1.04e+12 FLOPs" in words.how_read(record)) is (spent is not None)


def test_a_curve_meets_its_target_between_evaluations():
    """Halving with each step: a third of the way down in logarithms is a third of the way along."""
    points = [(1.0, 8.0), (2.0, 4.0), (3.0, 2.0)]
    assert targets.place_of(points, 4 * 2 ** (-1 / 3)) == (pytest.approx(2 + 1 / 3), False)
    assert targets.place_of(points, 4.0) == (2.0, False)
    assert targets.place_of(points, 9.0) == (1.0, True)
    assert targets.place_of(points, 1.9) == (math.inf, False)
    assert targets.place_of([(1.0, 1.0), (2.0, -1.0)], 0.0) == (pytest.approx(1.5), False)


def test_the_cost_of_getting_as_far_is_a_ratio_with_an_interval():
    """ERW ends at 2.5, REPA at 3: ERW is there a log2(3 / 2.5) of a quarter earlier, at every seed alike."""
    found = targets.reaches(made_up(noise=(0.0,) * 5), resamples=50)
    assert [(r.ours, r.theirs, r.axis) for r in found] == [
        (a, b, axis) for a, b in (("erw", "repa"), ("repa", "sit")) for axis in ("flops", "seconds", "images")
    ]
    share = 1 - math.log2(3 / 2.5) / 4
    assert found[0].ratio == pytest.approx(share) == found[0].low == found[0].high
    assert found[2].ratio == pytest.approx(share * 1550 / 1500)
    assert found[0].missed == 0 and not found[0].first


def test_an_interval_holds_the_seeds_spread_and_says_what_is_not_reached():
    spread = targets.reaches(made_up(gap={"erw": [0.3, -0.3, 0.2, -0.2, 0.0]}), resamples=500)[0]
    assert spread.low < spread.ratio < spread.high < 1
    behind = made_up(gap={"erw": [2.0, 2.0, 0.5, 0.5, 0.4]})
    missed = targets.reaches(behind)[0]
    assert math.isinf(missed.ratio) and 0.9 < missed.missed < 1
    assert f"not reached (but in {1 - missed.missed:.0%} of resamples)" in words.reach_table(behind)
    assert targets.reaches(behind)[0] == missed
