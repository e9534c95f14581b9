"""Fine-tuning: runs that start with another model's weights, and resume as any run does."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

import train_ds
from erw import cli
from erw.checkpoint import found, read_tensors
from erw.convert import import_public
from erw.errors import UserError
from erw.latents import LatentConfig
from published import published_weights, random_sit, training_checkpoint
from states import difference, state_at
from tiny import BATCH, MODEL, tiny

pytestmark = pytest.mark.slow

LAST = 6 * BATCH


@pytest.fixture(scope="module")
def repa(tmp_path_factory):
    """A public REPA file of the digits' shape, one block short, with a projector for their teacher."""
    weights = published_weights(random_sit(replace(MODEL, depth=2)), projector_width=24)
    return training_checkpoint(weights, tmp_path_factory.mktemp("public") / "repa.pt", path_type="linear", prediction="v")


def from_repa(name: str, repa, out, **train):
    return tiny(name, out, train={"init_from": str(repa), "init_convention": "repa", "keep": 9, **train})


@pytest.fixture(scope="module")
def whole(repa, one_rank, tmp_path_factory):
    """ERW from the public file, through the hand-over, with a checkpoint at every step."""
    out = tmp_path_factory.mktemp("finetune") / "whole"
    train_ds.train(from_repa("erw", repa, out, save_every=BATCH))
    return out


# Inside the warm-up, at the hand-over (where the checkpoint still holds the warm-up) and after it.
@pytest.mark.parametrize("stop", [2, 3, 4])
def test_a_resumed_fine_tuning_is_the_same_run(stop, repa, whole, tmp_path):
    origin = str(whole / "checkpoints" / f"{stop * BATCH:012d}")
    train_ds.train(from_repa("erw", repa, tmp_path / "resumed", resume=origin))
    assert difference(state_at(whole, LAST), state_at(tmp_path / "resumed", LAST)) == 0.0


def test_blocks_that_the_warm_up_lacks_start_from_the_source_at_the_hand_over(repa, whole):
    first, source = state_at(whole, 4 * BATCH)["weights"], torch.load(repa, weights_only=False)["ema"]
    name = "blocks.1.mlp.fc1.weight"
    assert name not in state_at(whole, 3 * BATCH)["weights"]
    assert float((first[name] - source[name]).abs().max()) < 2e-4  # one step of 1e-4


def test_it_matters_where_a_run_starts(whole, tmp_path, one_rank):
    train_ds.train(tiny("erw", tmp_path / "seed"))
    assert difference(state_at(whole, LAST), state_at(tmp_path / "seed", LAST)) > 0.01


def test_a_run_goes_on_from_the_checkpoint_that_it_began_with(whole, tmp_path):
    """The source trains on meanwhile: its newest checkpoint is another, but not for this run."""
    source = tmp_path / "source"
    for images in (4 * BATCH, 5 * BATCH):
        shutil.copytree(whole / "checkpoints" / f"{images:012d}", source / "checkpoints" / f"{images:012d}")
    common = {"init_from": str(source), "save_every": 2 * BATCH, "keep": 9}
    train_ds.train(tiny("erw", tmp_path / "a", train=common))
    shutil.copytree(whole / "checkpoints" / f"{LAST:012d}", source / "checkpoints" / f"{LAST:012d}")
    origin = {"resume": str(tmp_path / "a" / "checkpoints" / f"{2 * BATCH:012d}")}
    train_ds.train(tiny("erw", tmp_path / "b", train=common | origin))
    assert difference(state_at(tmp_path / "a", LAST), state_at(tmp_path / "b", LAST)) == 0.0
    shutil.rmtree(source / "checkpoints" / f"{5 * BATCH:012d}")
    with pytest.raises(UserError, match="is needed for its next phase: put it back"):
        train_ds.train(tiny("erw", tmp_path / "c", train=common | origin))
    after = {"resume": str(tmp_path / "a" / "checkpoints" / f"{4 * BATCH:012d}")}
    train_ds.train(tiny("erw", tmp_path / "d", train=common | after))
    assert difference(state_at(tmp_path / "a", LAST), state_at(tmp_path / "d", LAST)) == 0.0


def test_other_classes_size_and_channels_train_and_are_said(one_rank, capsys, tmp_path):
    """From ImageNet's shape in small to a folder of other images: two steps, too small to move a weight that was loaded."""
    sit = random_sit(replace(MODEL, in_channels=4, num_classes=1000, learn_sigma=True))
    file = training_checkpoint(published_weights(sit), tmp_path / "sit.pt")
    data = tmp_path / "data"
    data.mkdir()
    generator = np.random.default_rng(0)
    np.save(data / "latents.npy", generator.normal(size=(64, 3, 16, 16)).astype(np.float16))
    np.save(data / "labels.npy", np.arange(64) % 5)
    (data / "manifest.json").write_text('{"num_classes": 5}')
    config = tiny("sit", tmp_path / "run", images=2 * BATCH, train={"init_from": str(file), "init_convention": "sit"},
                  data={"name": "arrays", "path": str(data)}, optim={"lr": 1e-20},
                  model={"in_channels": 3, "num_classes": 5, "input_size": 16})  # fmt: skip
    train_ds.train(config)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("init_from ")]
    other = [
        "x_embedder.proj.weight",
        "y_embedder.embedding_table.weight",
        "final_layer.linear.weight",
        "final_layer.linear.bias",
    ]
    assert len(said) == 1 and all(f"{name} (other shape)" in said[0] for name in other), said
    assert "not in the source" not in said[0]
    ema = read_tensors(found(tmp_path / "run" / "checkpoints")[-1], "ema")
    name = "blocks.2.mlp.fc1.weight"
    assert torch.equal(ema[name], sit.state_dict()[name])
    rows = [json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["images"] for row in rows if "loss" in row] == [BATCH, 2 * BATCH]


def test_a_converted_model_is_sampled_and_fine_tuned_but_not_resumed(one_rank, tmp_path):
    config = tiny("sit", tmp_path / "run", images=2 * BATCH)
    file = training_checkpoint(published_weights(random_sit(MODEL)), tmp_path / "repa.pt")
    checkpoint = import_public(file, "repa", tmp_path / "converted", LatentConfig(kind="pixels"), MODEL.num_heads)
    cli.main(["sample", str(tmp_path / "converted"), "--count", "3", "--steps", "2", "--labels", "1", "--guidance", "2"])
    samples = tmp_path / "converted" / "samples-000000000000" / "samples.npz"
    assert np.load(samples)["arr_0"].shape == (3, 8, 8, 1)
    train = {"init_from": str(tmp_path / "converted"), "images": 2 * BATCH}
    train_ds.train(replace(config, train=replace(config.train, **train)))
    assert found(tmp_path / "run" / "checkpoints")
    for resume, out in [(str(tmp_path / "converted"), tmp_path / "x"), ("auto", tmp_path / "converted")]:
        with pytest.raises(UserError, match=f"holds no optimizer state.*--train.init_from {checkpoint}"):
            train_ds.train(replace(config, train=replace(config.train, resume=resume, out=str(out))))


@pytest.mark.parametrize("what", ["file", "shape", "another start"])
def test_a_resume_where_a_fine_tuning_was_meant_says_so(what, repa, whole, one_rank, tmp_path):
    checkpoint = found(whole / "checkpoints")[-1]
    wish = repa if what == "file" else checkpoint
    config = tiny("erw", tmp_path / "run", train={"resume": str(wish)}, model={"depth": 4 if what == "shape" else 3})
    says = {
        "file": f"is a file, .* use --train.init_from {repa} --train.init_convention sit, dit or repa",
        "shape": f"written with --model.depth 3, this run has 4: give the same, .*--train.init_from {checkpoint}",
        "another start": f"written with --train.init_from {repa}, this run has none: give the same",
    }[what]
    with pytest.raises(UserError, match=says):
        train_ds.train(config)


def test_a_setting_younger_than_a_checkpoint_does_not_forbid_to_resume_it(whole, repa, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(whole / "checkpoints" / f"{5 * BATCH:012d}", old)
    meta = json.loads((old / "meta.json").read_text())
    for section, name in [("model", "learn_sigma"), ("optim", "eps"), ("objective", "interpolant")]:
        del meta["config"][section][name]
    (old / "meta.json").write_text(json.dumps(meta))
    train_ds.train(from_repa("erw", repa, tmp_path / "resumed", resume=str(old)))
    assert difference(state_at(whole, LAST), state_at(tmp_path / "resumed", LAST)) == 0.0
