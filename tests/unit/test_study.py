"""A study: its file, its plan, its commands."""

import dataclasses
import shlex

import pytest

from erw.bench.convergence.__main__ import main
from erw.bench.convergence.plan import plan
from erw.bench.convergence.runs import claimed, schedule
from erw.bench.convergence.study import Budget, names, read_study
from erw.errors import UserError
from erw.options import parse
from erw.plan import Costs, phases
from erw.presets import preset


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
    assert cells[1] == "102,400,000" and cells[4] == "52.3 at 50K, 19.4 at 100K, 11.1 at 200K, 7.9 at 400K"
    assert int(cells[5].replace(",", "")) > 20 and cells[6] == "164 (H100)" and cells[7].endswith("GB")
    assert "torchrun --nproc-per-node 8 train_ds.py in256-erw-b2" in said
    assert "sample runs/repa-xl2-0 --count 50000" in said and "erw eval runs/repa-xl2-0/samples.npz" in said
