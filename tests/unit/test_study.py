"""A study: its file, its plan, what is read off made-up records with known answers, its tables and pages."""

import dataclasses
import json
import math
import shlex
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from PIL import Image

from erw.bench import report as readme
from erw.bench.convergence import figures, report, sweep, targets, words
from erw.bench.convergence.__main__ import main
from erw.bench.convergence.figures import Estimate, estimate, paired, reading
from erw.bench.convergence.picture import draw
from erw.bench.convergence.plan import plan
from erw.bench.convergence.runs import claimed, schedule
from erw.bench.convergence.study import Budget, names, read_study
from erw.errors import UserError
from erw.options import parse
from erw.plan import Costs, phases
from erw.presets import preset
from erw.settings import to_dict
from studies import LEVELS, SEEDS, curve, made_up

ROOT = Path(__file__).resolve().parents[2]
FIGURES = ("frechet", "accuracy", "memorised")


def _close(found: Estimate, values: list[float]) -> None:
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


# ---- words ------------------------------------------------------------------------------------------------------------


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


# ---- what it takes to get as far ---------------------------------------------------------------------------------------


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


# ---- studies and plans ------------------------------------------------------------------------------------------------


def _cost(config) -> float:
    return sum(Costs(config).per_image(phase) * images for phase, images in phases(config))


@pytest.mark.parametrize("name", names())
def test_every_study_has_a_plan_that_passes_its_checks(name):
    study = read_study(name)
    rates = {variant: {"train": 1e-3, "warmup": 3e-4, "full": 1e-3} for variant in study.variants}
    for config in plan(study, rates=rates).values():
        config.check()


def test_the_plan_is_the_presets_with_another_teacher_and_common_evaluations():
    study = read_study("digits")
    configs = plan(study)
    for name, config in configs.items():
        base = preset(f"digits-{name.split('-')[0]}")
        train = [{**dataclasses.asdict(c.train), "out": ""} for c in (config, base)]
        assert train[0] == train[1]
        assert (config.method, config.optim, config.model) == (base.method, base.optim, base.model)
        assert config.eval.count == base.eval.count
    assert {name: config.teacher.name for name, config in configs.items()} == {
        "sit": "none", "repa": "digits-contrastive", "erw": "digits-contrastive",
        "repa-supervised": "digits-supervised", "erw-supervised": "digits-supervised",
    }  # fmt: skip
    every = {config.eval.every for config in configs.values()}
    assert len(every) == 1
    shortest, batch = min(config.train.images for config in configs.values()), configs["sit"].train.batch
    assert 0 <= every.pop() * study.evaluations - shortest < study.evaluations * batch


@pytest.mark.parametrize("share", [1.0, 0.3, 0.02])
def test_the_plan_spends_the_same_whatever_the_share(share):
    configs = plan(read_study("digits"), share)
    costs = {name: _cost(config) for name, config in configs.items()}
    batch = max(_cost(config) * config.train.batch / config.train.images for config in configs.values())
    assert max(costs.values()) - min(costs.values()) <= 1.01 * batch
    assert costs["sit"] == pytest.approx(share * _cost(preset("digits-sit")), rel=0.05)


def test_warm_ups_have_their_share():
    for name, config in plan(read_study("digits-erw")).items():
        warmup = Costs(config).per_image(config.method.phase(0)) * config.method.warmup_images
        wanted = float(f"0.{name[-2:]}") if name.startswith("share") else 0.1
        assert warmup / _cost(config) == pytest.approx(wanted, rel=0.02)


@pytest.mark.parametrize("rows", [500, 1_000_000])
@pytest.mark.parametrize("name", ["repa", "erw"])
def test_a_budget_of_flops_pays_for_the_features_that_a_run_reads(name, rows, monkeypatch):
    """A gigaFLOP for each image of the dataset, once, as far as the run aligns them; SiT reads none."""
    monkeypatch.setattr("erw.bench.convergence.plan._features", lambda c: (10**9, rows) if c.method.needs_teacher else (0, 0))
    study = read_study("cifar10-cpu")
    configs = plan(study)
    assert configs["sit"].train.images == study.set["train.images"]
    config, costs = configs[name], Costs(configs[name])
    budget = Costs(configs["sit"]).per_image(configs["sit"].method.phase(0)) * configs["sit"].train.images
    found = sum(costs.per_image(phase) * images for phase, images in phases(config)) + 10**9 * min(rows, config.train.images)
    assert found == pytest.approx(budget, abs=1.5 * config.train.batch * found / config.train.images)


def test_a_budget_of_seconds_goes_by_the_pilots_rates():
    study = dataclasses.replace(read_study("digits"), budget=Budget(unit="seconds", amount=100.0))
    rates = {name: {"train": 0.01, "full": 0.01, "warmup": 0.002} for name in study.variants} | {"repa": {"train": 0.02}}
    configs = plan(study, rates=rates)
    assert configs["sit"].train.images == pytest.approx(10_000, abs=16) == 2 * configs["repa"].train.images
    method = configs["erw"].method
    assert method.warmup_images == pytest.approx(0.1 * 100 / 0.002, abs=16)
    assert configs["erw"].train.images - method.warmup_images == pytest.approx(90 / 0.01, abs=16)
    with pytest.raises(UserError, match="needs the pilot's rates"):
        plan(study)


def test_each_seed_begins_with_another_variant():
    order = schedule(["a", "b", "c"], [7, 8, 9, 10])
    assert [seed for _, seed in order] == [7] * 3 + [8] * 3 + [9] * 3 + [10] * 3
    assert "".join(name for name, _ in order) == "".join(["abc", "bca", "cab", "abc"])


def test_a_run_belongs_to_one_process(tmp_path):
    with claimed(tmp_path / "run") as ours, claimed(tmp_path / "run") as theirs:
        assert ours and not theirs
    with claimed(tmp_path / "run") as again:
        assert again


GOOD = """
title = "t"
about = "a"
seeds = [0, 1]
evaluations = 2
quality = "frechet"
[budget]
unit = "images"
amount = 320
[variants.a]
label = "A"
preset = "digits-sit"
"""


@pytest.mark.parametrize(
    "text, message",
    [
        (GOOD.replace("[0, 1]", "[1, 1]"), "seeds must be two or more different numbers"),
        (GOOD.replace("digits-sit", "digits-sitt"), "variant a: preset 'digits-sitt' is not known; did you mean digits-sit"),
        (GOOD.replace("amount = 320", ""), "a budget has an amount or is like a variant's, one of the two"),
        (GOOD.replace("amount = 320", 'like = "b"'), "'b' is no variant"),
        (GOOD + 'colour = "red"', "colour"),
        (GOOD + "warmup_share = 1.5", "warmup_share must be from 0 to below 1"),
        (GOOD.replace("[budget]", 'compare = [["a"]]\n[budget]'), "take pairs of variants"),
        (GOOD + "[sweep]\nseeds = [1]\nmore_seeds = [5]\ngo_on = 1\n[sweep.trials]\na = [{}]", "has seeds of the study"),
        (GOOD + "[", "is not TOML"),
    ],
)
def test_a_study_that_cannot_be_is_refused(text, message, tmp_path):
    (tmp_path / "x.toml").write_text(GOOD)
    assert read_study(str(tmp_path / "x.toml")).name == "x"
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(UserError, match="x.toml") as refused:
        read_study(str(tmp_path / "x.toml"))
    assert message in str(refused.value)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["digit"], "study 'digit' is not known; did you mean digits"),
        (["digits", "--seeds", "3"], "--seeds must be two or more different numbers"),
        (["digits", "--seeds", "1", "1"], "--seeds must be two or more different numbers"),
        (["digits", "--share", "0.5"], "name another file with --record"),
        (["digits", "--variants", "sit", "erw"], "name another file with --record"),
        (["digits", "--variants", "sit", "rep", "--record", "x.json"], "'rep' is not known"),
        (["digits", "--variants", "sit", "sit", "--record", "x.json"], "names one twice"),
        (["digits", "--share", "2", "--record", "x.json"], "at most 1, not 2"),
        (["digits", "--record", "nowhere/x.json"], "there is no folder nowhere"),
        (["digits-erw", "--sweep", "--sweep-record", "x.json"], "study digits-erw has no sweep"),
    ],
)
def test_mistakes_are_said_in_a_line(arguments, message, capsys, tmp_path):
    with pytest.raises(SystemExit) as left:
        main([*arguments, "--out", str(tmp_path)])
    assert left.value.code == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and message in said[0]
    assert not list(tmp_path.iterdir())


def test_a_dry_run_names_every_command(capsys):
    main(["digits-erw", "--dry-run"])
    said = capsys.readouterr().out
    for name, config in plan(read_study("digits-erw")).items():
        (line,) = [line for line in said.splitlines() if f"--train.out runs/{name}-0 " in line]
        settings, _ = parse(shlex.split(line)[2:])
        assert settings.method == config.method and settings.train.images == config.train.images


def test_the_papers_table_has_commands_hours_and_disk(capsys):
    main(["imagenet256", "--dry-run", "--variants", "repa-xl2", "erw-b2"])
    said = capsys.readouterr().out
    repa = next(line for line in said.splitlines() if line.startswith("| SiT-XL/2 + REPA"))
    cells = [cell.strip() for cell in repa.split("|")[1:-1]]
    assert cells[1] == "102,400,000" and cells[4] == "19.4 at 100K, 11.1 at 200K, 7.9 at 400K" or "52.3" in cells[4]
    assert int(cells[5].replace(",", "")) > 20 and cells[6] == "164 (H100)" and cells[7].endswith("GB")
    assert "torchrun --nproc-per-node 8 train_ds.py in256-erw-b2" in said
    assert "sample runs/repa-xl2-0 --count 50000" in said and "erw eval runs/repa-xl2-0/samples.npz" in said


# ---- pages ------------------------------------------------------------------------------------------------------------


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
