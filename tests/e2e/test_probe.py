"""``erw probe`` as a user meets it, on two small trained runs: files, figures, and one line for every mistake."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import train_ds
from erw import cli
from erw.checkpoint import locate
from erw.probe import linear
from erw.probe.images import ImageSource, read_images
from erw.probe.network import Network, hidden_states
from erw.probe.similarity import cka, cknna, unit_rows
from erw.sample import load_run
from tiny import BATCH, tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(one_rank, tmp_path_factory):
    """A run of ERW with checkpoints in both phases, and one of SiT."""
    out = tmp_path_factory.mktemp("probe")
    train_ds.train(tiny("erw", out / "erw", train={"save_every": 2 * BATCH, "keep": 9}))
    train_ds.train(tiny("sit", out / "sit", images=2 * BATCH))
    return out


def warm_up_of(runs: Path) -> Path:
    return runs / "erw" / "checkpoints" / f"{2 * BATCH:012d}"


def probed(*arguments, out: Path) -> dict:
    cli.main(["probe", *map(str, arguments), "--out", str(out)])
    return json.loads((out / "probe.json").read_text())


def has_a_picture(file: Path) -> bool:
    pixels = np.asarray(Image.open(file).convert("RGB"))
    return pixels.shape[0] > 200 and pixels.shape[1] > 300 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10


@pytest.fixture(scope="module")
def probe_folder(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "probe"
    probed(runs / "sit", runs / "erw", "--count", "120", "--times", "0,0.5", out=out)
    return out


def test_it_leaves_tables_and_figures(probe_folder):
    files = {"probe.json", "probe.md", "semantic-gap.png", "alignment.png", "progression.png"}
    assert {file.name for file in probe_folder.iterdir()} == files
    assert all(has_a_picture(file) for file in probe_folder.glob("*.png"))
    text = (probe_folder / "probe.md").read_text()
    for words in ("| untrained | 0 |", "| sit | 0.5 |", "block 3", "t = 0 is data", "k = 10", "class: null", "120 images"):
        assert words in text
    assert "digits-contrastive (of erw)" in text  # SiT has no teacher of its own: whose it is is said


def test_every_network_time_and_block_has_a_row(probe_folder):
    record = json.loads((probe_folder / "probe.json").read_text())
    places = {(row["run"], row["t"], row["block"]) for row in record["rows"]}
    assert places == {(n, t, b) for n in ("untrained", "sit", "erw") for t in (0, 0.5) for b in (1, 2, 3)}
    assert len(places) == len(record["rows"])
    assert all(0 <= row["accuracy"] <= 1 and 0 <= row["cka"] <= 1 and row["cknna"] < 1 for row in record["rows"])
    assert record["teacher"]["accuracy"] > 0.85 > max(row["accuracy"] for row in record["rows"] if row["run"] == "untrained")


def test_progression_goes_over_checkpoints_the_warm_ups_too(probe_folder):
    record = json.loads((probe_folder / "probe.json").read_text())
    found = {(row["run"], row["images"], row["phase"]) for row in record["progression"]}
    erw = [(0, ""), (2 * BATCH, "warmup"), (3 * BATCH, "warmup"), (4 * BATCH, "full"), (6 * BATCH, "full")]
    assert found == {("sit", 0, ""), ("sit", 2 * BATCH, "train")} | {("erw", *rest) for rest in erw}
    blocks = {row["block"] for row in record["progression"] if row["phase"] == "warmup"}
    assert blocks == {1} and any("lies in the warm-up: no block 2, 3" in note for note in record["notes"])


def test_the_figures_are_of_the_checkpoint(runs, probe_folder):
    """One row again by hand: the EMA's block outputs, pooled, by the measures alone."""
    config, model, checkpoint = load_run(runs / "erw", torch.device("cpu"))
    images = read_images(config, ImageSource(teacher="digits-contrastive", count=120), torch.device("cpu"))
    network = Network(model, config.objective, 0, "")
    train, held = (hidden_states(network, split, 0.5, (2,))[2] for split in (images.train, images.held_out))
    record = json.loads((probe_folder / "probe.json").read_text())
    (row,) = (r for r in record["rows"] if (r["run"], r["t"], r["block"]) == ("erw", 0.5, 2))
    teacher = images.held_out.teacher
    assert row["images"] == int(checkpoint.name) and row["cka"] == pytest.approx(cka(held, teacher), abs=1e-5)
    assert row["cknna"] == pytest.approx(cknna(unit_rows(held), unit_rows(teacher)), abs=1e-4)
    accuracy = linear.fit(train, images.train.labels).accuracy(held, images.held_out.labels)
    assert row["accuracy"] == pytest.approx(accuracy, abs=0.01)


def test_a_warm_up_checkpoint_gives_the_blocks_it_has(runs, tmp_path):
    record = probed(warm_up_of(runs), "--count", "40", "--times", "0", "--tokens", out=tmp_path / "probe")
    (name,) = record["runs"]
    assert name == "erw@32" and {row["block"] for row in record["rows"] if row["run"] == name} == {1}
    assert record["protocol"]["alignment"].startswith("each token position")


def test_chosen_layers_and_raw_weights(runs, tmp_path):
    common = ("--count", "40", "--times", "0.25", "--layers", "2,3", "--teacher", "digits-supervised")
    ema, raw = (probed(runs / "erw", *common, "--weights", w, out=tmp_path / w) for w in ("ema", "weights"))
    assert {row["block"] for row in ema["rows"]} == {2, 3} and ema["teacher"]["name"] == "digits-supervised"
    assert any("has none of these layers: left out" in note for note in ema["notes"])
    assert ema["rows"][-1]["cknna"] != raw["rows"][-1]["cknna"] and ema["rows"][0] == raw["rows"][0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["/nowhere"], "'/nowhere' does not exist"),
        (["EMPTY"], "neither a checkpoint nor the folder of a run"),
        (["SIT"], "none of these runs aligns with a teacher: name one with --teacher"),
        (["SIT", "SIT"], "the same run was named twice"),
        (["ERW", "--teacher", "digits-contrastiv"], "did you mean digits-contrastive"),
        (["ERW", "--layers", "1,4"], "--layers 4 is not a block of erw: it has blocks 1 to 3"),
        (["ERW", "--layers", "one"], "invalid list of whole numbers value"),
        (["WARM", "--layers", "2"], "lies in the warm-up and has only blocks 1 to 1"),
        (["ERW", "--times", "0,2"], "--times must be different numbers in 0..1"),
        (["ERW", "--count", "10"], "needs at least 11 images, there are 10: raise --count"),
        (["ERW", "--data", "/data"], "--data is for runs on prepared data"),
        (["ERW", "--count", "40", "--out", "FILE"], "is a file: name a folder"),
        (["ERW", "--placement-images", "64"], "--placement-images is for --placement"),
        (["--placement", "ERW", "--times", "0"], "--times is not for --placement"),
        (["--placement", "SIT"], "this is method none: name a preset or run of ERW"),
        (["--placement", "digits-erv"], "did you mean digits-erw"),
        (["--placement", "ERW", "--placement-images", "20"], "--placement-images 20 must be a multiple of the batch, 16"),
    ],
)
def test_mistakes_get_one_line_and_write_nothing(runs, capsys, tmp_path, arguments, says):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    places = {"SIT": runs / "sit", "ERW": runs / "erw", "WARM": warm_up_of(runs), "EMPTY": tmp_path / "empty",
              "FILE": tmp_path / "file"}  # fmt: skip
    given = [str(places.get(a, a)) for a in arguments]
    with pytest.raises(SystemExit) as stopped:
        cli.main(["probe", *([] if "--out" in given else ["--out", str(tmp_path / "out")]), *given])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("erw: error: ")]
    assert stopped.value.code == 2 and len(errors) == 1 and says in errors[0], errors
    assert not (tmp_path / "out").exists() and (tmp_path / "file").read_text() == "mine"


def test_placement_trains_each_range_and_compares(runs, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(train_ds, "stop_ranks", lambda: None)  # the session's group goes on
    command = ["probe", "--placement", str(runs / "erw"), "--placement-images", str(2 * BATCH), "--placement-full-images",
               str(BATCH), "--count", "40", "--out", str(tmp_path / "out")]  # fmt: skip
    cli.main(command)
    record = json.loads((tmp_path / "out" / "placement.json").read_text())
    assert [row["blocks"] for row in record["rows"]] == ["1-2", "2-3", "none"]
    assert all(set(row) == {"blocks", "seed", "diffusion", "align", "cknna"} for row in record["rows"][:2])
    assert set(record["rows"][2]) == {"blocks", "seed", "diffusion"}
    assert all(row["diffusion"] > 0 and -1 <= row["align"] <= 1 for row in record["rows"][:2])
    assert has_a_picture(tmp_path / "out" / "placement.png")
    assert "| 1 to 2 |" in capsys.readouterr().out and "| no warm-up |" in (tmp_path / "out" / "placement.md").read_text()
    warm = locate(tmp_path / "out" / "blocks-2-3-seed-0")
    before = warm.stat().st_mtime_ns
    cli.main(command)  # killed and started again: what is finished is not trained again
    assert warm.stat().st_mtime_ns == before
    assert json.loads((tmp_path / "out" / "placement.json").read_text())["rows"] == record["rows"]
