"""Trained runs from end to end: their page in a browser, what tells them apart, and the model handed on."""

import json
import shutil

import numpy as np
import pytest
import torch

import train_ds
from erw import cli
from erw.bench.screenshot import browser, picture
from erw.checkpoint import found, read_tensors
from erw.errors import UserError
from pages import Page
from tiny import BATCH, tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(run_jobs, tmp_path_factory):
    """SiT and ERW on digits, evaluated and sampled at two checkpoints; the names' brackets must not become tags."""
    folder = tmp_path_factory.mktemp("runs")
    places = {"sit": folder / "plain <b>sit</b>".replace("/", "|"), "erw": folder / "erw"}
    common = {"save_every": 2 * BATCH, "keep": 9}
    judged = {"name": "digits", "every": 5 * BATCH, "count": 20}
    run_jobs([tiny(name, out, train=common, sample={"steps": 4}, eval=judged) for name, out in places.items()], ranks=1)
    for out in places.values():
        for images in (4 * BATCH, 6 * BATCH):
            cli.main(["sample", str(out / "checkpoints" / f"{images:012d}"), "--count", "20"])
    cli.main(["eval", str(places["erw"]), "--features", "digits"])
    return list(places.values())


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "report.html"
    cli.main(["report", *map(str, runs), "--out", str(out)])
    return out


def test_the_page_holds_every_run_and_its_figures(runs, page):
    read = Page(page.read_text(encoding="utf-8"))
    read.check()
    assert len(read.loads) == 4 and "hand-overs between phases" in read.text and "alignment loss" in read.text
    assert "20 samples by ode, steps 4," in read.text and "reference the judge's own" in read.text
    for run in runs:
        assert run.name in read.text
        last = json.loads((run / "evals.jsonl").read_text().splitlines()[-1])
        assert f"{last['frechet']:.4g}" in read.text and f"{last['flops']:.2e}" in read.text
        accounts = json.loads((run / "accounts.json").read_text())
        assert all(f"{entry['device_seconds'] / 3600:.3g}" in read.text for entry in accounts["phases"].values())
        for entry in accounts["phases"].values():
            largest = max(entry["parts"], key=entry["parts"].get)
            assert f"{largest} {entry['parts'][largest] / sum(entry['parts'].values()):.0%}" in read.text
        start = json.loads((run / "starts.jsonl").read_text())
        assert start["images"] == 0 and start["ranks"] == 1 and start["torch"] == torch.__version__.partition("+")[0]
        assert accounts["device"] in read.text and start["python"] in read.text


@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_the_page_without_scrolling_sideways(width, page):
    if browser() is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    taken, tall = picture(page, None, width)
    assert taken == width and 1000 < tall < 40_000


def test_a_page_that_is_too_wide_is_noticed(tmp_path):
    if browser() is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    wide = tmp_path / "wide.html"
    wide.write_text('<!doctype html><meta charset="utf-8"><div style="width:900px">wide</div>')
    assert picture(wide, tmp_path / "wide.png", 390, 300)[0] >= 900 and (tmp_path / "wide.png").exists()


def test_a_page_that_is_not_there_gets_one_line(tmp_path):
    with pytest.raises(UserError, match="does not exist|no browser"):
        picture(tmp_path / "nowhere.html", None, 390)


def test_a_trained_model_is_handed_on_bit_for_bit(runs, tmp_path):
    cli.main(["export", str(runs[1]), "--out", str(tmp_path / "exported")])
    cli.main(["import", str(tmp_path / "exported"), "--out", str(tmp_path / "back")])
    ours, theirs = (read_tensors(found(run / "checkpoints")[-1], "ema") for run in (runs[1], tmp_path / "back"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    cli.main(["sample", str(tmp_path / "back"), "--count", "20"])
    images = [np.load(run / f"samples-{6 * BATCH:012d}" / "samples.npz")["arr_0"] for run in (runs[1], tmp_path / "back")]
    assert np.array_equal(*images) and images[0].std() > 0
    figure = json.loads((runs[1] / "evals.jsonl").read_text().splitlines()[-1])["frechet"]
    card = (tmp_path / "exported" / "README.md").read_text()
    assert f"{figure:.4g}" in card and "Protocol (`erw eval`): 20 samples by ode" in card


def test_each_start_of_a_run_is_noted(runs, one_rank, tmp_path):
    out = tmp_path / "again"
    shutil.copytree(runs[0], out)
    config = tiny("sit", out, images=7 * BATCH, train={"resume": "auto"}, sample={"steps": 4})
    for _ in range(2):  # the second time there is nothing to train
        train_ds.train(config)
        starts = [json.loads(row) for row in (out / "starts.jsonl").read_text().splitlines()]
        assert [start["images"] for start in starts] == [0, 6 * BATCH]


def test_the_two_runs_are_told_apart(runs, capsys):
    cli.main(["compare", *map(str, runs), "--json"])
    found = json.loads(capsys.readouterr().out)["differences"]
    assert found["settings"]["method.name"] == ["none", "erw"] and not found["seeds"] and not found["versions"]
    assert found["results"]["EMA, SHA-256"][0] != found["results"]["EMA, SHA-256"][1]
