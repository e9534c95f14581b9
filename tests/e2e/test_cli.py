"""The command line as a user meets it: a run, its samples, and one line for every mistake."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import train_ds
from erw import cli
from erw.bench._lives import free_port
from erw.evaluate.digits import load_judge
from erw.evaluate.running import EVAL_SEED
from erw.sample import balanced_labels, generate, load_run
from launch import environment
from tiny import BATCH, tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(run_jobs, tmp_path_factory):
    """A run of ERW with a checkpoint inside the warm-up, and evaluations, on one rank."""
    out = tmp_path_factory.mktemp("cli") / "erw"
    config = tiny("erw", out, train={"save_every": 2 * BATCH, "keep": 9, "tensorboard": True}, sample={"steps": 4})
    run_jobs([replace(config, eval=replace(config.eval, name="digits", every=5 * BATCH, count=20))], ranks=1)
    return out


def test_a_run_leaves_its_account(finished):
    rows = [json.loads(row) for row in (finished / "metrics.jsonl").read_text().splitlines()]
    losses = [row for row in rows if "loss" in row]
    assert [row["images"] for row in losses] == [BATCH * i for i in range(1, 7)]
    assert [row["phase"] for row in losses] == ["warmup"] * 3 + ["full"] * 3
    assert any(row.get("hand_over") == "full" for row in rows)
    accounts = json.loads((finished / "accounts.json").read_text())
    assert {name: entry["images"] for name, entry in accounts["phases"].items()} == {"warmup": 48, "full": 48}
    for entry in accounts["phases"].values():
        assert {"data wait", "forward", "backward", "optimizer"} <= set(entry["parts"])
        # The last report goes on after its step was booked, and the hand-over is in no part.
        within = sum(seconds for part, seconds in entry["parts"].items() if part != "report")
        assert 0 < within <= entry["seconds"]
    assert set(accounts["other"]) == {"teacher", "evaluation", "saving"}
    assert losses[-1]["flops"] == pytest.approx(sum(e["flops"] for e in accounts["phases"].values()))
    assert accounts["device_hours"] > 0
    evals = [json.loads(row) for row in (finished / "evals.jsonl").read_text().splitlines()]
    assert [row["images"] for row in evals] == [5 * BATCH, 6 * BATCH]
    assert all(row["frechet"] > 0 and 0 <= row["accuracy"] <= 1 for row in evals)
    assert list((finished / "tensorboard").glob("events*"))


def test_sample_rebuilds_the_model_from_the_checkpoint_alone(finished, run_erw, tmp_path):
    alone = tmp_path / "checkpoint"
    shutil.copytree(finished / "checkpoints" / f"{6 * BATCH:012d}", alone)
    done = run_erw(
        "sample",
        str(alone),
        "--count",
        "12",
        "--batch",
        "4",
        "--out",
        str(tmp_path / "out"),
        "--seed",
        "3",
        program="-m erw.cli",
    )
    assert done.returncode == 0, done.stderr
    data = np.load(tmp_path / "out" / "samples.npz")
    assert data["arr_0"].shape == (12, 8, 8, 1) and data["arr_0"].dtype == np.uint8
    assert list(data["labels"]) == [i % 10 for i in range(12)]
    assert Image.open(tmp_path / "out" / "samples.png").size[0] > 8
    again = run_erw(
        "sample",
        str(alone),
        "--count",
        "5",
        "--batch",
        "4",
        "--out",
        str(tmp_path / "again"),
        "--seed",
        "3",
        program="-m erw.cli",
    )
    assert again.returncode == 0, again.stderr
    assert np.array_equal(np.load(tmp_path / "again" / "samples.npz")["arr_0"], data["arr_0"][:5])


def test_samples_come_from_the_ema_in_eval_mode(finished):
    from erw.checkpoint import read_tensors

    _, model, checkpoint = load_run(finished, torch.device("cpu"))
    ema, weights = (read_tensors(checkpoint, key) for key in ("ema", "weights"))
    name = "blocks.0.attn.qkv.weight"
    assert torch.equal(model.state_dict()[name], ema[name]) and not torch.equal(ema[name], weights[name])
    assert not model.training


def mistake(capsys, main, arguments: list[str], says: str) -> None:
    """``main`` exits with code 2 after one line on stderr that says what was wrong."""
    with pytest.raises(SystemExit) as stopped:
        main([str(a) for a in arguments])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("erw: error: ")]
    assert stopped.value.code == 2 and len(errors) == 1 and says in errors[0], errors


def one_line(done, says: str) -> None:
    """The same of a process: and no traceback."""
    errors = [line for line in done.stderr.splitlines() if line.startswith("erw: error: ")]
    assert done.returncode == 2, (done.returncode, done.stderr[-3000:])
    assert len(errors) == 1 and says in errors[0], done.stderr[-3000:]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["digits-srt"], "did you mean digits-sit"),
        (["digits-sit", "--model.dpeth", "3"], "did you mean --model.depth"),
        (["digits-sit", "--model.depth", "x"], "takes a whole number"),
        (["digits-repa", "--method.depth", "40"], "has blocks 1 to"),
        (["digits-erw", "--method.projection_depth", "1"], "lies before the warm-up's end"),
        (["digits-sit", "--batch", "33", "--engine.accumulation", "2"], "not divisible by 1 ranks x --engine.accumulation 2"),
        (["in256-sit-b2", "--data.path", "/nowhere"], "'/nowhere' is not a folder"),
        (["digits-repa", "--model.patch_size", "1"], "gives 4x4 patches, the model has 8x8"),
        (["digits-repa", "--teacher.name", "none"], "needs a teacher"),
        (["digits-repa", "--teacher.name", "dinov9"], "'dinov9' is not known"),
        (["digits-sit", "--model.num_classes", "5"], "set it to 10"),
        (["digits-sit", "--model.input_size", "16"], "set --model.input_size 8"),
        (["digits-sit", "--ds-config", "/nowhere.json"], "cannot be read"),
        (["digits-sit", "--engine.precision", "bf16"], "needs ZeRO-1"),
        (["digits-erw", "--images", "64"], "ends before the warm-up does"),
    ],
)
def test_mistakes_in_training_get_one_line(one_rank, capsys, arguments, says, tmp_path):
    mistake(capsys, train_ds.main, [*arguments, "--out", tmp_path / "run"], says)
    assert not (tmp_path / "run" / "checkpoints").exists() or not any((tmp_path / "run" / "checkpoints").iterdir())


def test_a_mistake_seen_from_outside(run_erw, tmp_path):
    one_line(run_erw("digits-sit", "--model.dpeth", "3", as_a_user=True), "did you mean --model.depth")
    one_line(run_erw("in256-sit-b2", "--data.path", "/nowhere", "--out", str(tmp_path / "run")), "'/nowhere' is not a folder")
    one_line(run_erw("sample", "/nowhere", program="-m erw.cli", as_a_user=True), "does not exist")


def test_lr_in_a_ds_config_gets_one_line(capsys, tmp_path):
    file = tmp_path / "mine.json"
    file.write_text('{"zero_optimization": {"stage": 1}, "optimizer": {"type": "Adam", "params": {"lr": 1}}}')
    arguments = ["digits-sit", "--ds-config", file, "--out", tmp_path / "run"]
    mistake(capsys, train_ds.main, arguments, "'optimizer' does not belong")


def test_mistakes_in_resuming_get_one_line_and_lose_nothing(one_rank, capsys, finished):
    before = sorted(p.name for p in (finished / "checkpoints").iterdir())
    same = ["digits-erw", "--out", finished]
    mistake(capsys, train_ds.main, same, "already holds a run: --resume auto")
    mistake(capsys, train_ds.main, [*same, "--resume", "auto"], "give the same, or start a new run")
    elsewhere = ["digits-erw", "--resume", "/nowhere", "--out", finished / "x"]
    mistake(capsys, train_ds.main, elsewhere, "neither a checkpoint nor")
    assert before == sorted(p.name for p in (finished / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["/nowhere"], "does not exist"),
        (["RUN", "--labels", "12"], "classes of this model are 0..9"),
        (["RUN", "--labels", "cat"], "takes balanced, random or class numbers"),
        (["RUN", "--steps", "1"], "--sample.steps must be at least 2"),
        (["RUN", "--steps", "many"], "invalid int value"),
        (["RUN", "--count", "0"], "--count must be at least 1"),
        (["WARM"], "lies in the warm-up"),
        (["CUT"], "is truncated"),
    ],
)
def test_mistakes_in_sampling_get_one_line(capsys, finished, arguments, says, tmp_path):
    places = {"RUN": finished, "WARM": finished / "checkpoints" / f"{2 * BATCH:012d}", "CUT": tmp_path / "cut"}
    if arguments[0] == "CUT":
        shutil.copytree(finished / "checkpoints" / f"{6 * BATCH:012d}", tmp_path / "cut")
        (tmp_path / "cut" / "ema.safetensors").write_bytes(b"short")
    mistake(capsys, cli.main, ["sample", *(places.get(a, a) for a in arguments)], says)


def test_a_teacher_that_cannot_be_had_offline_gets_one_line(run_erw, one_rank, capsys, tmp_path):
    """The hub is out of reach: the line names the teacher and the way out."""
    folder = tmp_path / "data"
    folder.mkdir()
    np.save(folder / "latents.npy", np.zeros((32, 4, 32, 32), np.float16))
    np.save(folder / "labels.npy", np.arange(32))
    (folder / "manifest.json").write_text('{"num_classes": 1000}')
    common = ["in256-repa-s2", "--data.path", str(folder), "--latents.kind", "pixels", "--out", str(tmp_path / "run")]
    mistake(capsys, train_ds.main, common, "holds no teacher features")
    online = [*common, "--teacher.source", "online"]
    mistake(capsys, train_ds.main, online, "needs images in the dataset")
    np.save(folder / "images.npy", np.zeros((32, 3, 256, 256), np.uint8))
    one_line(run_erw(*online, env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}), "cannot be had")


def test_no_compiler_is_needed(run_erw, tmp_path):
    """DeepSpeed would compile an all-reduce for CPUs at the first start; a machine without a compiler trains too."""
    bare = {"PATH": "/nonexistent", "CC": "/nonexistent/cc", "CXX": "/nonexistent/c++"}
    small = ["--model.depth", "1", "--images", "64", "--eval.name", "none", "--train.tensorboard", "false"]
    done = run_erw("digits-sit", *small, "--out", str(tmp_path / "run"), env=bare)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.dist
def test_two_ranks_at_stage_three_train_hand_over_and_resume(run_erw, tmp_path):
    run = tmp_path / "run"
    common = ["digits-erw", "--ds-config", "ds_configs/zero3.json", "--out", run, "--method.warmup_images", "64",
              "--eval.every", "64", "--eval.count", "20", "--eval.batch", "8"]  # fmt: skip
    first = run_erw(*common, "--images", "128", ranks=2, as_a_user=True)
    assert first.returncode == 0, first.stderr[-3000:]
    assert "hand-over at image 64" in first.stdout + first.stderr
    second = run_erw(*common, "--images", "192", "--resume", "auto", ranks=2)
    assert second.returncode == 0, second.stderr[-3000:]
    assert "resumed" in second.stdout + second.stderr
    assert (run / "checkpoints" / f"{192:012d}" / "meta.json").exists()
    # Both ranks sampled from the gathered EMA, three blocks between them: what the checkpoint's own EMA gives.
    rows = [json.loads(row) for row in (run / "evals.jsonl").read_text().splitlines()]
    assert [row["images"] for row in rows] == [128, 192]
    config, model, _ = load_run(run, torch.device("cpu"))
    labels = balanced_labels(20, 10)
    images = generate(model, config.objective, config.sample, labels, seed=EVAL_SEED, batch=8)
    expected = load_judge("cpu").evaluate(images, labels)
    assert {key: rows[-1][key] for key in expected} == pytest.approx(expected, rel=1e-3)
    marked = [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines() if '"evaluation"' in row]
    assert [(row["images"], row["evaluation"], row["eval/frechet"]) for row in marked] == [
        (row["images"], "digits", row["frechet"]) for row in rows
    ]


@pytest.mark.dist
def test_the_deepspeed_launcher_works_too(tmp_path):
    root = Path(__file__).resolve().parents[2]
    launcher = Path(sys.executable).with_name("deepspeed")
    command = [str(launcher), "--num_gpus", "2", "--master_port", str(free_port()), str(root / "train_ds.py"), "digits-sit",
               "--ds-config", "zero1", "--eval.name", "none", "--images", "64", "--out", str(tmp_path / "run")]  # fmt: skip
    path = f"{launcher.parent}:{os.environ['PATH']}"
    env = environment(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1", PATH=path)
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=env, cwd=tmp_path)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert (tmp_path / "run" / "checkpoints" / f"{64:012d}" / "meta.json").exists()
