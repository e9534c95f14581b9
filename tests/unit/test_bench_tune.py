"""How good a pilot's choice was: read off a made-up study, whatever comes out."""

import json
from pathlib import Path

import pytest

from erw.bench import tune
from erw.bench._section import section
from erw.bench.convergence.study import read_study
from erw.errors import UserError
from erw.settings import to_dict
from studies import curve

ROOT = Path(__file__).resolve().parents[2]
SEEDS = (0, 1, 2, 3)
NOISE = (0.2, -0.2, 0.4, -0.4)  # of the seeds, in every variant alike
LEVELS = {"share-05": 3.0, "share-10": 2.5, "share-40": 4.0, "blocks-1": 2.8, "blocks-2-3": 1.0, "nt-xent": 1.1}
PILOT = {"what": "tune-warmup", "preset": "digits-erw", "depth": 2, "warmup_images": 5120, "projection_depth": 3, "seeds": [7],
         "share_of_pilot": 0.4, "pilot_share": 0.4, "budget_flops": 1.01e12, "depths": {"1": {}, "2": {}, "3": {}}}  # fmt: skip


def made_up(level: float = 2.6, extra: dict | None = None) -> dict:
    """A study of 32,000 images in which a share of 0.01 is 320 images. ``tuned``: the pilot's choice at ``level``; by variant,
    ``extra`` is added seed by seed."""
    study = to_dict(read_study("digits-erw"))
    study["variants"]["tuned"] = study["variants"]["share-10"] | {"label": "tuned", "warmup_share": 0.16}
    entries = {}
    for name, mean in (LEVELS | {"tuned": level}).items():
        variant = study["variants"][name]
        images = round(variant["warmup_share"] * 32_000)
        method = {"first": 1, "depth": variant["set"].get("method.depth", 2), "projection_depth": 3, "warmup_images": images}
        ends = [mean + NOISE[k] + (extra or {}).get(name, [0.0] * 4)[k] for k in range(4)]
        runs = [{"seed": seed, "curve": curve(end, 50.0, 32_000)} for seed, end in zip(SEEDS, ends, strict=True)]
        entries[name] = {"settings": {"method": method}, "runs": runs}
    return {"study": study, "settings": {"seeds": list(SEEDS), "variants": list(entries), "batch": 32}, "variants": entries}


def said(record: dict, **pilot) -> str:
    return tune.markdown(PILOT | pilot, record, Path("r.json"))


def test_the_choice_is_found_among_what_differs_in_share_and_depth_alone():
    record = made_up()
    assert tune.choices(PILOT, record) == ["share-05", "share-10", "share-40", "blocks-1", "tuned"]
    assert tune.chosen(PILOT, record) == "tuned"
    assert tune.chosen(PILOT | {"warmup_images": 5152}, record) == "tuned"  # a batch more
    assert tune.chosen(PILOT | {"warmup_images": 3200}, record) == "share-10"
    assert tune.chosen(PILOT | {"warmup_images": 3200, "depth": 1}, record) == "blocks-1"


def test_a_choice_near_the_best_and_far_from_the_worst():
    text = said(made_up())
    rows = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert [row.split(" | ")[0] for row in rows] == [
        "| warm-up 10%", "| tuned (the pilot's choice)", "| warm-up of block 1", "| warm-up 5%", "| warm-up 40%",
    ]  # fmt: skip
    assert rows[1] == "| tuned (the pilot's choice) | 16.0% | 2 | 2.60 | 0.37 | 1.04 |"
    assert "*tuned* has 1.04 times the distance of the best fixed choice, *warm-up 10%*: within the 1.10" in text
    assert "*tuned* is better than the worst fixed choice, *warm-up 40%*, by 1.40, more than the spread of" in text
    assert "3 runs over depths 1, 2, 3, each 40% of a run's FLOPs" in text and "16.0% of the run's FLOPs" in text


def test_the_spread_is_of_differences_paired_by_seed():
    """The worst lies 1.5, 1.5, 0.5 and 0.5 above: 1.0 and a deviation of 0.577; then 4, 0, 4, 0 above: 2.0 and 2.31."""
    gain = "the worst fixed choice, *warm-up 40%*, by"
    assert f"{gain} 1.00, more than the spread of 0.58" in said(made_up(3.0, {"share-40": [0.5, 0.5, -0.5, -0.5]}))
    assert f"{gain} 2.00, **not** more than the spread of 2.31" in said(made_up(2.0, {"share-40": [2.0, -2.0, 2.0, -2.0]}))


def test_a_bad_choice_is_called_one():
    text = said(made_up(2.8))
    assert "*tuned* has 1.12 times the distance of the best fixed choice, *warm-up 10%*: **not** within the 1.10" in text
    text = said(made_up(4.5))
    assert "*tuned* is **not** better than the worst fixed choice, *warm-up 40%*: 0.50 above it." in text


def test_the_best_choice_is_called_that():
    assert "No fixed choice is better than *tuned* (2.40; the next, *warm-up 10%*, 2.50)." in said(made_up(2.4))
    assert "*warm-up 10%* has 1.04 times" in said(made_up(2.4), warmup_images=3200)  # an old choice again, the others fixed


@pytest.mark.parametrize("change, message", [
    ({"seeds": [7, 2]}, "the pilot was on seeds 2 of the study digits-erw"),
    ({"budget_flops": 2e12}, "the pilot is for a run of 2e+12 FLOPs, the study digits-erw has 1e+12"),
    ({"warmup_images": 9600}, "add one with preset digits-erw, warmup_share = 0.16 and set { method.depth = 2 }"),
    ({"depth": 3}, "no variant of the study digits-erw is the pilot's choice"),
    ({"preset": "digits-dit-erw"}, "no variant of the study digits-erw"),
])  # fmt: skip
def test_a_pilot_that_does_not_fit_the_study(change, message):
    with pytest.raises(UserError) as refused:
        said(made_up(), **change)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_a_study_that_is_not_finished_is_none():
    record = made_up()
    record["variants"]["tuned"]["runs"].pop()
    with pytest.raises(UserError, match="holds 27 of 28 runs"):
        said(record)


def test_the_command_writes_the_section_and_nothing_else(tmp_path, capsys):
    page, pilot, record = tmp_path / "page.md", tmp_path / "pilot.json", tmp_path / "record.json"
    pilot.write_text(json.dumps(PILOT))
    record.write_text(json.dumps(made_up()))
    page.write_text("before\n<!-- tune -->\nNot measured.\n<!-- /tune -->\nafter\n")
    options = ["--pilot", str(pilot), "--record", str(record), "--write", str(page)]
    tune.main(options)
    body = capsys.readouterr().out.strip()
    assert page.read_text() == f"before\n<!-- tune -->\n{body}\n<!-- /tune -->\nafter\n" and "1.04 times" in body
    for file, content, message in [
        (pilot, "{}", "is no record of erw tune-warmup"),
        (record, "{", "is not JSON"),
        (page, "nothing", "has no <!-- tune -->"),
    ]:
        before = file.read_text()
        file.write_text(content)
        with pytest.raises(SystemExit) as end:
            tune.main(options)
        said = capsys.readouterr().err
        assert end.value.code == 2 and message in said and said.count("\n") == 1
        file.write_text(before)


def test_the_page_has_the_section():
    assert section((ROOT / tune.PAGE).read_text(encoding="utf-8"), "tune", str(tune.PAGE)).strip()
