"""Evaluation beside training: what is written where, published figures beside it, and an evaluator's place."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from erw.boards import open_boards
from erw.build import build_step
from erw.checkpoint import read_tensors
from erw.engine.ranks import Ranks
from erw.errors import UserError
from erw.evaluate import EVALUATORS, EvalConfig, running
from erw.evaluate.anchors import BATCH, anchors_for, remark
from erw.evaluate.running import EVAL_SEED, RunningEvaluation
from erw.presets import preset
from erw.run import Run
from erw.sample import balanced_labels, generate, load_run
from untrained import untrained

ALONE = Ranks(0, 1, torch.device("cpu"))


class Listener:
    """An evaluator that keeps what it was given."""

    def evaluate(self, images, labels):
        self.images, self.labels = images, labels
        return {"fid": 12.34, "is": 50.0}


@pytest.fixture
def judged(tmp_path, monkeypatch):
    """(listener, run's folder, what was said) of one evaluation of 11 images in blocks of 4, at image 12,800,000."""
    listener, asked, said = Listener(), [], []
    monkeypatch.setitem(EVALUATORS, "listener", lambda *given: asked.append(given) or listener)
    monkeypatch.setattr(running, "anchors_for", lambda config: anchors_for(preset("in256-repa-xl2")))
    folder, config = untrained(tmp_path / "run")
    config = replace(config, eval=EvalConfig(name="listener", count=11, batch=4))
    config = replace(config, train=replace(config.train, out=str(tmp_path / "evaluated"), tensorboard=True))
    (checkpoint,) = (folder / "checkpoints").iterdir()
    step = build_step(config, config.method.phase(0))
    engine = SimpleNamespace(read=lambda key, device: read_tensors(checkpoint, key), step_module=step)
    run = Run(config, ALONE)
    run.images = 12_800_000
    monkeypatch.setattr(run.telemetry, "say", said.append)
    evaluation = RunningEvaluation(config, ALONE)
    assert asked == [(ALONE.device, config)]  # made at the start, from device and settings
    evaluation.evaluate(run, engine)
    run.finish()
    return SimpleNamespace(listener=listener, folder=Path(config.train.out), source=folder, said=said, run=run)


def test_the_evaluator_gets_the_emas_samples(judged):
    config, model, _ = load_run(judged.source, torch.device("cpu"))
    labels = balanced_labels(11, 10)
    expected = generate(model, config.objective, config.sample, labels, seed=EVAL_SEED, batch=4)
    assert torch.equal(judged.listener.images, expected) and torch.equal(judged.listener.labels, labels)


def test_the_result_is_in_both_files_and_among_the_curves(judged):
    (row,) = [json.loads(row) for row in (judged.folder / "evals.jsonl").read_text().splitlines()]
    assert row == {"images": 12_800_000, "flops": 0, "seconds": 0, "fid": 12.34, "is": 50.0}
    (row,) = [json.loads(row) for row in (judged.folder / "metrics.jsonl").read_text().splitlines()]
    assert row == {"images": 12_800_000, "evaluation": "listener", "eval/fid": 12.34, "eval/is": 50.0}
    events = EventAccumulator(str(judged.folder / "tensorboard"))
    events.Reload()
    assert [(e.step, round(e.value, 2)) for e in events.Scalars("eval/fid")] == [(12_800_000, 12.34)]
    assert judged.run.accounts.other["evaluation"] > 0 and judged.run.accounts.total("seconds") == 0


def test_the_line_has_the_published_figures(judged):
    assert judged.said == [
        "evaluation at image 12,800,000: fid 12.34, is 50; published SiT-XL/2 + REPA at 50K steps: 52.3 (fid); published"
        " SiT-XL/2 + ERW at 50K steps: 56.1 (is); published figures are of 50,000 samples, this one of 11"
    ]


def test_a_remark_is_made_where_there_is_something_to_say():
    anchors = anchors_for(preset("in256-repa-b2"))
    assert remark(anchors, {"fid": 80.0}, 50_000 * BATCH, 50_000) == "; published SiT-B/2 + REPA at 50K steps: 78.2"
    assert remark(anchors, {"accuracy": 0.9}, 50_000 * BATCH, 1000) == ""
    assert remark([], {"fid": 80.0}, 50_000 * BATCH, 1000) == ""


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag eval/fid of every run below a TensorBoard folder."""
    found = {}
    for place in folder.iterdir():
        if place.is_dir():
            events = EventAccumulator(str(place))
            events.Reload()
            found[place.name] = [(e.step // BATCH // 1000, round(e.value, 2)) for e in events.Scalars("eval/fid")]
    return found


def test_tensorboard_draws_published_curves_into_the_runs_charts(tmp_path):
    config = preset("in256-repa-xl2")
    config = replace(config, train=replace(config.train, out=str(tmp_path)), eval=EvalConfig(name="digits"))
    for _ in range(2):  # as at a resume
        for board in open_boards(config, 0):
            board.close()
    assert curves(tmp_path / "tensorboard") == {
        "published SiT-XL-2 + REPA": [(50, 52.3), (100, 19.4), (200, 11.1), (400, 7.9)],
        "published SiT-XL-2 + ERW": [(150, 25.0), (200, 12.1)],
        "published SiT-XL-2 + iREPA": [(100, 16.96)],
        "published SiT-XL-2 + REG": [(100, 8.9), (200, 5.0), (400, 3.4)],
        "published SiT-XL-2 at 7M steps": [(0, 8.3), (400, 8.3)],  # beyond the run: a level line
    }


def test_no_evaluation_no_curves(tmp_path):
    config = preset("in256-repa-xl2")
    for board in open_boards(replace(config, train=replace(config.train, out=str(tmp_path))), 0):
        board.close()
    assert curves(tmp_path / "tensorboard") == {}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"name": "digts"}, "--eval.name 'digts' is not known; did you mean digits"),
        ({"count": 0}, "--eval.count and --eval.batch at least 1"),
        ({"batch": 0}, "--eval.count and --eval.batch at least 1"),
        ({"every": -1}, "--eval.every must be 0 or more"),
    ],
)
def test_mistakes_get_one_line(fields, says):
    with pytest.raises(UserError, match=says):
        EvalConfig(**fields)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has TF32")
def test_a_precision_that_the_device_lacks_is_said_before_training(tmp_path):
    _, config = untrained(tmp_path / "run")
    with pytest.raises(UserError, match="tf32 is an NVIDIA GPU's"):
        RunningEvaluation(replace(config, eval=EvalConfig(name="digits", precision="tf32")), ALONE)


def test_a_missing_vae_is_said_before_training(tmp_path):
    _, config = untrained(tmp_path / "run", latents={"kind": "vae", "vae": str(tmp_path / "nothing")})
    with pytest.raises(UserError, match="--latents.vae"):
        RunningEvaluation(replace(config, eval=EvalConfig(name="digits")), ALONE)
