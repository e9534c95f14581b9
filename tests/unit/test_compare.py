"""What two runs differ in, in words and as JSON."""

import json
import math
from dataclasses import replace

import pytest

from erw import cli
from erw.report.compare import compare, compare_text
from folders import START, report_row, write_checkpoint, write_run
from tiny import BATCH, tiny


def test_two_equal_runs_do_not_differ(tmp_path):
    judged = {"images": 96, "frechet": math.nan}  # which equals nothing, but is the same result
    runs = [write_run(tmp_path / name, tiny("sit", "x"), evals=(judged,)) for name in ("a", "b")]
    found = compare(*runs)
    assert not any(found["differences"].values()) and compare_text(found) == "a and b do not differ"


def test_every_kind_of_difference_is_named(tmp_path):
    first, second = tiny("sit", "x"), tiny("repa", "y", images=4 * BATCH, data={"path": "elsewhere"})
    second = replace(second, train=replace(second.train, seed=5))
    evals = ({"images": 96, "frechet": 2.5}, {"images": 64, "frechet": math.nan})
    later = START | {"commit": "999", "date": "later"}
    runs = [
        write_run(tmp_path / "a", first, evals=evals[:1]),
        write_run(tmp_path / "b", second, evals=evals[1:], starts=(later,)),
    ]
    write_checkpoint(runs[0], first, 96)
    write_checkpoint(runs[1], second, 64, seed=1)
    found = compare(*runs)["differences"]
    assert found["settings"]["method.name"] == ["none", "repa"] and found["settings"]["method.depth"] == [None, 2]
    assert found["settings"]["train.images"] == [96, 64] and "train.seed" not in found["settings"]
    assert found["seeds"] == {"train.seed": [0, 5]} and found["data"] == {"data.path": ["", "elsewhere"]}
    assert found["bookkeeping"] == {"train.out": ["x", "y"]} and found["versions"] == {"commit": ["abc123def", "999"]}
    assert found["progress"] == {"images": [96, 64]}
    assert found["results"]["frechet"] == [2.5, "nan"] and found["results"]["evaluated at image"] == [96, 64]
    ours, theirs = found["results"]["EMA, SHA-256"]
    assert len(ours) == 64 and ours != theirs
    text = compare_text(compare(*runs))
    assert text.startswith("a and b differ in settings (") and "the same" not in text
    assert "frechet " in text and ours[:12] in text and ours not in text


def test_equal_bits_are_recognised(tmp_path):
    config = tiny("sit", "x")
    runs = [write_run(tmp_path / name, config) for name in ("a", "b")]
    for run in runs:
        write_checkpoint(run, config, 96)
    assert not any(compare(*runs)["differences"].values())


def test_runs_without_metrics_and_versions_are_compared_as_far_as_they_go(tmp_path):
    config = tiny("sit", "x")
    runs = [write_run(tmp_path / "a", config), write_run(tmp_path / "b", config, rows=[], starts=(), ended=False)]
    found = compare(*runs)
    assert found["differences"]["progress"]["images"] == [96, 0] and found["differences"]["results"]["loss"][1] is None
    assert "b: commit and versions were not recorded" in found["notes"] and "versions" not in found["differences"]
    assert "versions" not in compare_text(found).splitlines()[0]
    (runs[1] / "metrics.jsonl").write_text(json.dumps(report_row(16)) + '\n{"ima')
    assert "b: the last line of metrics.jsonl was cut short and is left out" in compare_text(compare(*runs))


def test_the_command_gives_text_or_json_and_always_0(tmp_path, capsys):
    runs = [write_run(tmp_path / name, tiny(name, "x")) for name in ("sit", "repa")]
    cli.main(["compare", *map(str, runs)])
    assert "sit and repa differ in settings" in capsys.readouterr().out
    cli.main(["compare", *map(str, runs), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [run["name"] for run in found["runs"]] == ["sit", "repa"] and set(found) == {"runs", "notes", "differences"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["A"], "required: RUN"),
        (["A", "A"], "is named twice"),
        (["A", "/nowhere"], "'/nowhere' does not exist"),
        (["A", "B", "C"], "unrecognized arguments"),
    ],
)
def test_mistakes_in_comparing_get_one_line(arguments, says, tmp_path, capsys):
    places = {name: str(write_run(tmp_path / name, tiny("sit", "x"))) for name in "ABC"}
    with pytest.raises(SystemExit) as stopped:
        cli.main(["compare", *(places.get(a, a) for a in arguments)])
    error = capsys.readouterr().err.strip()
    assert stopped.value.code == 2 and says in error and len(error.splitlines()) == 1, error
