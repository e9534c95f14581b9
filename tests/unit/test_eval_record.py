"""``erw eval`` as a command: the record that it leaves, and one line for every mistake."""

import json
import time

import numpy as np
import pytest
import torch

from erw import cli
from erw.evaluate import evaluation
from erw.evaluate.features import FEATURES

pytest.importorskip("torch_fidelity", reason="needs pip install 'erw[eval]'")
RNG = np.random.default_rng(0)


class Pixels:
    """Five fixed pixels of the first channel as features; a broken one on request."""

    width, facts = 5, {"network": "five pixels", "resize": "none", "weights": "none"}

    def __init__(self, name, broken=False):
        self.name, self.broken = name, broken

    def __call__(self, pixels):
        features = pixels[:, 0, 0, :5].float()
        return {"features": features.log() - features.log() if self.broken else features}


@pytest.fixture(autouse=True)
def networks(monkeypatch):
    monkeypatch.setitem(FEATURES, "pixels", lambda name, device, weights: Pixels(name))
    monkeypatch.setitem(FEATURES, "broken", lambda name, device, weights: Pixels(name, broken=True))
    monkeypatch.setattr("erw.evaluate.metrics.KID_SUBSETS", 2)


@pytest.fixture
def files(tmp_path):
    """Samples, real images, and a manifest as erw sample leaves it."""
    pixels = RNG.integers(0, 256, (90, 6, 6, 3), dtype=np.uint8)
    np.savez(tmp_path / "samples.npz", arr_0=pixels[:40], labels=np.arange(40) % 10)
    np.savez(tmp_path / "real.npz", arr_0=pixels[40:])
    np.savez(tmp_path / "few.npz", arr_0=pixels[:5])
    np.savez(tmp_path / "larger.npz", arr_0=np.zeros((9, 7, 7, 3), np.uint8))
    return tmp_path


def erw(capsys, *arguments) -> list[str]:
    cli.main(["eval", *map(str, arguments)])
    return capsys.readouterr().out.splitlines()


def test_the_record(files, capsys):
    drawn = {"sampler": "heun", "steps": 50, "guidance": 1.5, "labels": "balanced", "seed": 0, "checkpoint": "1f"}
    (files / "manifest.json").write_text(json.dumps({"complete": True, "sampling": None, "protocol": drawn}))
    lines = erw(capsys, files / "samples.npz", "--reference", files / "real.npz", "--features", "pixels")
    out = files / "samples-eval-pixels.json"
    assert lines[-1] == str(out) and lines[0].startswith("pixels: frechet ")
    record = json.loads(out.read_text())
    assert set(record["results"]["pixels"]) == {"frechet", "precision", "recall", "kid", "kid_sd"}
    protocol = record["protocol"]
    assert protocol["sampling"] == drawn | {"weights": "unknown"}
    assert protocol["samples"]["count"] == 40 and protocol["samples"]["labels"] == {"classes": 10, "rarest": 4, "commonest": 4}
    assert protocol["reference"]["pixels"]["count"] == 50 and protocol["features"]["pixels"] == Pixels.facts
    assert len(protocol["samples"]["sha256"]) == len(protocol["reference"]["pixels"]["sha256"]) == 64
    where = protocol["environment"]
    assert where["torch"] == torch.__version__.split("+")[0] and where["torch-fidelity"] and where["date"] and where["device"]
    assert not list(files.glob("*.partial"))


def test_what_no_manifest_says_is_unknown(files, capsys):
    erw(
        capsys,
        files / "samples.npz",
        "--reference",
        files / "real.npz",
        "--features",
        "pixels",
        "--out",
        files / "a" / "b.json",
    )
    sampling = json.loads((files / "a" / "b.json").read_text())["protocol"]["sampling"]
    assert set(sampling.values()) == {"unknown"} and {"sampler", "steps", "guidance", "labels"} <= set(sampling)


def test_saved_statistics_give_the_same_figures(files, capsys):
    erw(capsys, files / "samples.npz", "--reference", files / "real.npz", "--features", "pixels")
    images = json.loads((files / "samples-eval-pixels.json").read_text())
    saved = files / "stats.npz"
    assert erw(capsys, "--reference", files / "real.npz", "--features", "pixels", "--save-reference", saved) == [str(saved)]
    erw(capsys, files / "samples.npz", "--reference", saved, "--features", "pixels")
    statistics = json.loads((files / "samples-eval-pixels.json").read_text())
    assert statistics["results"] == images["results"]
    assert statistics["protocol"]["reference"] == images["protocol"]["reference"]


def test_a_run_means_its_newest_samples(files, capsys):
    run = files / "run"
    for name, source in (("samples-000000000032", "few.npz"), ("samples-000000000064", "samples.npz")):
        (run / name).mkdir(parents=True)
        (run / name / "samples.npz").write_bytes((files / source).read_bytes())
        time.sleep(0.02)
    (run / "checkpoints").mkdir()
    lines = erw(capsys, run, "--reference", files / "real.npz", "--features", "pixels")
    assert lines[-1] == str(run / "samples-000000000064" / "eval-pixels.json")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("", "SAMPLES is missing"),
        ("samples.npz", "--reference is missing"),
        ("samples.npz --reference real.npz", "--features inception needs pt_inception-2015-12-05-6726825d.pth"),
        ("samples.npz --reference real.npz --weights nowhere.pth", "--weights nowhere.pth is not a file"),
        ("samples.npz --reference real.npz --features pixel", "did you mean pixels?"),
        ("samples.npz --reference nowhere --features pixels", "'nowhere' does not exist"),
        ("nowhere --reference real.npz --features pixels", "'nowhere' does not exist"),
        ("few.npz --reference real.npz --features pixels", "5 samples for 5 features make a singular covariance"),
        ("samples.npz --reference few.npz --features pixels", "5 reference images for 5 features make a singular covariance"),
        ("larger.npz --reference real.npz --features pixels", "images of 7x7, the reference of 6x6"),
        ("samples.npz --reference real.npz --features broken", "hold NaN or infinity"),
        ("real.npz --features digits", "real.npz has no labels"),
        ("samples.npz --features digits", "judges (N, 1, 8, 8) images"),
        ("empty --features pixels --reference real.npz", "is a run without samples: draw some first with erw sample empty"),
        ("samples.npz --reference real.npz --features pixels --out real.npz/a.json", "--out real.npz/a.json cannot be written"),
        ("--save-reference a.npz --features pixels", "--save-reference needs the images"),
        ("--save-reference a.npz --features pixels,digits --reference real.npz", "statistics of one network"),
        ("--save-reference real.npz/a.npz --features pixels --reference samples.npz", "real.npz/a.npz cannot be written"),
        ("samples.npz --count 5", "unrecognized arguments: --count 5 (erw eval --help)"),
        ("missing --features pixels --reference real.npz", "samples are still missing"),
    ],
)
def test_mistakes_get_one_line(files, capsys, monkeypatch, arguments, says):
    monkeypatch.chdir(files)
    monkeypatch.setenv("ERW_CACHE", str(files / "cache") if "digits" not in arguments else "")
    (files / "empty" / "checkpoints").mkdir(parents=True)
    (files / "missing").mkdir()
    (files / "missing" / "samples.npz").write_bytes((files / "samples.npz").read_bytes())
    (files / "missing" / "manifest.json").write_text('{"complete": false, "protocol": {}}')
    before = (files / "real.npz").read_bytes()
    with pytest.raises(SystemExit) as stopped:
        cli.main(["eval", *arguments.split()])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("erw: error: ")]
    assert stopped.value.code == 2 and len(errors) == 1 and says in errors[0], errors
    assert (files / "real.npz").read_bytes() == before and not list(files.glob("*eval*.json"))


def test_few_samples_can_be_allowed(files, capsys):
    erw(capsys, files / "few.npz", "--reference", files / "real.npz", "--features", "pixels", "--allow-few")
    record = json.loads((files / "few-eval-pixels.json").read_text())
    assert record["protocol"]["allow_few"] is True and record["results"]["pixels"]["frechet"] > 0


def test_digits_of_a_run_are_compared_with_its_data(files):
    (files / "config.json").write_text(json.dumps({"data": {"name": "digits"}}))
    assert evaluation._reference_of(files / "samples.npz") == "digits"
    (files / "config.json").write_text(json.dumps({"data": {"name": "arrays"}}))
    assert evaluation._reference_of(files / "samples.npz") is None
