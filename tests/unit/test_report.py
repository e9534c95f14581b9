"""The page about runs: what it reads, what it says, and that nothing in a run's folder can break it."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from erw import cli
from erw.errors import UserError
from erw.evaluate.anchors import Anchor
from erw.presets import preset
from erw.report.page import write_report
from erw.report.pictures import MOST, pictures
from erw.report.record import read_runs
from erw.report.rows import read_rows
from erw.report.words import lead
from folders import report_row, write_checkpoint, write_rows, write_run
from pages import Page
from tiny import BATCH, tiny

LAST = 6 * BATCH


def judged(*values: float, key: str = "frechet") -> tuple[dict, ...]:
    """Evaluations, one a value, evenly spread over a run of six steps."""
    every = LAST // len(values)
    return tuple({"images": every * i, "flops": every * i * 1e6, "seconds": float(i), key: v} for i, v in enumerate(values, 1))


def page_of(tmp_path, *runs, **options) -> Page:
    write_report(list(runs), tmp_path / "report.html", **options)
    return Page((tmp_path / "report.html").read_text(encoding="utf-8"))


@pytest.fixture
def two(tmp_path):
    sit = write_run(tmp_path / "sit", tiny("sit", "runs/sit"), evals=judged(9.5, 4.25))
    repa = write_run(tmp_path / "repa", tiny("repa", "runs/repa"), evals=judged(8.5, 3.125))
    return sit, repa


def test_a_page_holds_every_run_its_figures_and_loads_nothing(two, tmp_path):
    page = page_of(tmp_path, *two)
    page.check()
    for words in ("sit", "repa", "9.5", "4.25", "3.125", "method.name", "abc123def", "optim.lr", "9.60e+07"):
        assert words in page.text, words
    assert page.tags["svg"] == 3 + 4  # one metric against three, then loss, velocity, gradient norm, speed
    assert page.text.count("4.25") >= 2 and "lower is better" in page.text


def test_the_lead_says_how_runs_differ_and_how_they_ended(two):
    words = " ".join(lead(read_runs(list(two))))
    assert words.startswith("Two runs of a SiT of 3 blocks, width 32, patch 2 on digits: sit (no alignment) and repa (REPA).")
    assert "Frechet distance at the last evaluation, lower being better: repa 3.125 and sit 4.25 (at image 96)." in words
    assert "All finished." in words and "the same FLOPs to within 0.0% (9.60e+07)" in words
    told = "differ in the method and in teacher.name (none, digits-contrastive) and eval.every (6,400, 6,048); data and seeds"
    assert f"{told} are the same." in words
    assert "Commit, versions and machine are the same. Each is a single run" in words


def test_the_lead_tells_seeds_ends_costs_and_broken_losses_apart(tmp_path):
    base = tiny("sit", "x")
    other = replace(base, train=replace(base.train, seed=3))
    rows = [report_row(BATCH), report_row(2 * BATCH, loss=math.nan)]
    runs = write_run(tmp_path / "a", base), write_run(tmp_path / "b", other, rows=rows, ended=False, starts=())
    words = " ".join(lead(read_runs(list(runs))))
    assert "They differ in their seeds; data is the same." in words and "differ in the seed alone" in words
    assert "a finished and b stands at 32 of 96 images: stopped, or still running." in words
    assert "compare the curves, not their ends" in words and "No evaluation was made beside training." in words
    assert "The loss was not a finite number in b from image 32." in words
    assert "Commit and versions were not recorded in b." in words
    page = page_of(tmp_path, *runs)
    page.check()
    assert "no accounts yet" in page.text and "nan" not in page.html.lower()


def test_one_run_has_a_page_too(tmp_path):
    page = page_of(tmp_path, write_run(tmp_path / "alone", tiny("erw", "x"), evals=judged(2.5)))
    page.check()
    assert "alone is one run: ERW" in page.text and "What differs" not in page.text


@pytest.mark.parametrize("tail", ['{"images": 112, "lo', "\x00", '{"images": 112, "phase": "tr\u00e4'])
def test_a_killed_runs_last_line_is_left_out_and_said(tail, two, tmp_path):
    for name in ("metrics.jsonl", "evals.jsonl", "starts.jsonl"):
        with (two[0] / name).open("ab") as file:
            file.write(tail.encode()[:-1] if len(tail) > 1 else tail.encode())
    page = page_of(tmp_path, *two)
    page.check()
    for name in ("metrics.jsonl", "evals.jsonl", "starts.jsonl"):
        assert f"sit: the last line of {name} was cut short and is left out." in page.text
    assert len(read_rows(two[0] / "metrics.jsonl")[0]) == 6


@pytest.mark.parametrize("line", ["garbage", "[1, 2]", '{"loss": 1}', '{"images": "many"}'])
def test_a_line_that_no_kill_explains_is_named(line, two, tmp_path):
    file = two[0] / "metrics.jsonl"
    file.write_text(line + "\n" + file.read_text())
    with pytest.raises(UserError, match="metrics.jsonl line 1 is no row of a run"):
        page_of(tmp_path, *two)


def test_runs_of_one_name_are_told_apart(tmp_path):
    folders = [write_run(tmp_path / a / "x" / "erw", tiny("erw", "x")) for a in ("one", "two")]
    folders.append(write_run(tmp_path / "sit", tiny("sit", "x")))
    assert [run.name for run in read_runs(folders)] == ["one/x/erw", "two/x/erw", "sit"]
    page = page_of(tmp_path, *folders)
    page.check()
    assert "one/x/erw" in page.text and "two/x/erw" in page.text


def test_names_and_settings_are_text_and_never_markup(tmp_path):
    evil = '<script>alert(1)</script><img src=x onerror="alert(2)">&amp;'
    config = tiny("sit", evil, data={"path": evil}, train={"wandb": evil}, latents={"vae": evil})
    folder = evil.replace("/", "|")
    start = {"images": 0, "commit": evil, "date": evil, evil: evil}
    run = write_run(tmp_path / folder, config, evals=judged(3.0, key=evil), starts=(start,))
    write_rows(run / "metrics.jsonl", [report_row(BATCH, **{evil: 0.5, "phase": evil}), {"images": BATCH, "hand_over": evil}])
    other = write_run(tmp_path / "b", tiny("sit", "y"))
    page = page_of(tmp_path, run, other, anchors_for=lambda config: [published(model=evil, source=evil)])
    page.check()
    assert "img" not in page.tags and folder in page.text and page.text.count(evil) >= 6


def published(images: int = LAST, value: float = 7.9, steps: int = 4, **others) -> Anchor:
    told = {"model": "SiT-XL/2", "method": "repa", "metric": "fid", "source": "a paper, Table 1"} | others
    return Anchor(images=images, value=value, steps=steps, **told)


def test_published_results_stand_in_a_table_and_in_the_chart_where_they_fit(tmp_path):
    run = write_run(tmp_path / "run", tiny("repa", "x"), evals=judged(30.0, 9.0, key="fid"))
    far = published(100 * LAST, 5.9, 400)
    page = page_of(tmp_path, run, anchors_for=lambda config: [published(), published(), far])
    page.check()
    assert page.text.count("a paper, Table 1") == 2 + 1 and "5.9" in page.text  # two rows, one tooltip
    assert page.html.count('class="published"') == 1
    assert "Published" not in page_of(tmp_path, run).text


def test_published_results_of_a_run_s_own_model_are_found(tmp_path):
    config = preset("in256-repa-xl2")
    run = write_run(tmp_path / "run", config, rows=[report_row(256_000)], ended=False)
    page = page_of(tmp_path, run)
    page.check()
    assert "SiT-XL/2 + REPA" in page.text and "REG, Table 1" in page.text


def test_what_erw_eval_said_of_samples_stands_with_its_protocol(two, tmp_path):
    folder = two[0] / "samples-000000000096"
    folder.mkdir()
    drawn = {"sampler": "ode", "steps": 20, "guidance": 1.0, "labels": "balanced", "seed": 3, "weights": "ema"}
    record = {
        "results": {"inception": {"fid": 12.75, "kid": 0.125}, "digits": {"accuracy": 0.625}},
        "protocol": {"samples": {"count": 50}, "sampling": drawn | {"trained_images": 96},
                     "reference": {"inception": {"source": "/data/real.npz", "count": 360}, "digits": "the judge's own"}},
    }  # fmt: skip
    (folder / "samples-eval-inception-digits.json").write_text(json.dumps(record))
    page = page_of(tmp_path, *two)
    page.check()
    assert "FID 12.75, KID 0.125" in page.text and "accuracy 0.625" in page.text
    assert "50 samples by ode, steps 20, guidance 1.0, labels balanced, seed 3, weights ema" in page.text
    assert "features inception; reference real.npz (360 images)" in page.text and "reference the judge's own" in page.text
    (folder / "samples-eval-inception-digits.json").write_text("{")
    with pytest.raises(UserError, match="samples-eval-inception-digits.json cannot be read"):
        page_of(tmp_path, *two)


def test_samples_over_time_are_inside_the_page(two, tmp_path):
    for images in (960, 96):
        folder = two[0] / f"samples-{images:012d}"
        folder.mkdir()
        Image.fromarray(np.full((64, 64), images % 255, np.uint8)).save(folder / "samples.png")
    page = page_of(tmp_path, *two)
    page.check()
    assert [load[:22] for load in page.loads] == ["data:image/png;base64,"] * 2
    assert page.text.index("96 images") < page.text.index("960 images") and "Samples over time" in page.text


def test_large_pictures_shrink_and_many_are_thinned(tmp_path):
    for i in range(MOST + 3):
        folder = tmp_path / f"samples-{i:012d}"
        folder.mkdir()
        Image.fromarray(np.zeros((1400, 700, 3), np.uint8)).save(folder / "samples.png")
    shown, there = pictures(tmp_path)
    assert there == MOST + 3 and [shown[0].images, shown[-1].images] == [0, MOST + 2] and len(shown) == MOST
    assert (shown[0].width, shown[0].height) == (500, 1000) and shown[0].uri.startswith("data:image/jpeg;base64,")


def test_the_newer_accounts_are_shown(tmp_path):
    config = tiny("sit", "x")
    run = write_run(tmp_path / "run", config)
    write_checkpoint(run, config, 2 * BATCH)
    assert read_runs([run])[0].costs_from == "accounts.json"
    (run / "accounts.json").unlink()
    found = read_runs([run])[0]
    assert found.costs_from == "the newest checkpoint" and found.total("device_seconds") == 7200.0
    assert "from the newest checkpoint" in page_of(tmp_path, run).text


def break_run(what: str, run, tmp_path):
    if what == "no file":
        return tmp_path / "nowhere"
    if what == "file":
        return run / "config.json"
    if what == "parent":
        return tmp_path
    if what == "cut config":
        (run / "config.json").write_text('{"train": ')
    elif what == "other json":
        (run / "config.json").write_text("{}")
    elif what == "unknown setting":
        data = json.loads((run / "config.json").read_text())
        (run / "config.json").write_text(json.dumps(data | {"train": data["train"] | {"colour": "red"}}))
    elif what == "no metrics":
        (run / "metrics.jsonl").unlink()
    elif what == "empty metrics":
        (run / "metrics.jsonl").write_text("")
    elif what == "accounts":
        (run / "accounts.json").write_text('{"phases"')
    elif what == "picture":
        (run / "samples-1").mkdir()
        (run / "samples-1" / "samples.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    return run


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("no file", "does not exist: name a run's folder"),
        ("file", "is not a run's folder"),
        ("parent", "it holds runs, name them: "),
        ("cut config", "config.json cannot be read"),
        ("other json", "is not a run's folder"),
        ("unknown setting", 'config.json: settings: can not match "colour"'),
        ("no metrics", "has no metrics yet"),
        ("empty metrics", "has no metrics yet"),
        ("accounts", "accounts.json cannot be read"),
        ("picture", "samples.png is no picture"),
    ],
)
def test_mistakes_in_reporting_get_one_line_and_lose_nothing(what, says, two, tmp_path, capsys):
    out = tmp_path / "out" / "report.html"
    out.parent.mkdir()
    out.write_text("the page of yesterday")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["report", str(two[1]), str(break_run(what, two[0], tmp_path)), "--out", str(out)])
    error = capsys.readouterr().err.strip()
    assert stopped.value.code == 2 and says in error and len(error.splitlines()) == 1, error
    assert out.read_text() == "the page of yesterday" and len(list(out.parent.iterdir())) == 1


def test_mistakes_on_the_command_line_get_one_line(two, tmp_path, capsys):
    cases = {
        "is named twice": [*two, two[0], "--out", tmp_path / "x.html"],
        "is a folder: name a file": [*two, "--out", tmp_path],
        "cannot be written": [*two, "--out", two[0] / "config.json" / "x.html"],
        "required: --out": [*two],
        "required: RUN": ["--out", tmp_path / "x.html"],
    }
    for says, arguments in cases.items():
        with pytest.raises(SystemExit) as stopped:
            cli.main(["report", *map(str, arguments)])
        error = capsys.readouterr().err.strip()
        assert stopped.value.code == 2 and says in error and len(error.splitlines()) == 1, error
