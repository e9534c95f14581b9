"""``erw encoder`` and the teachers ``encoder:FILE``: what training learns, what the file tells, where the name goes."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from erw.build import open_data
from erw.cache import digest
from erw.cli import main
from erw.commands.encoder import train_to
from erw.data import DataConfig, open_dataset
from erw.data.memory import MemoryDataset, digits_dataset
from erw.errors import UserError
from erw.evaluate.feature_judge import load_feature_judge
from erw.evaluate.features import load_extractor
from erw.evaluate.statistics import open_reference
from erw.plan import Costs
from erw.prepare.job import PrepareJob, run_job
from erw.prepare.recipe import Recipe
from erw.presets import preset
from erw.settings import override
from erw.teachers import TeacherConfig, load_teacher, teacher_flops, teacher_specs
from erw.teachers import encoder as files
from erw.teachers.encoder import ImageEncoder, Shape, describe, write_encoder
from erw.teachers.features import FeatureSource
from erw.teachers.train_encoder import EncoderConfig, batches, read_images, train_encoder
from photographs import write_classes

CPU = torch.device("cpu")
SMALL = EncoderConfig(images=80 * 48, batch=48, width=16, blocks=1, features=12)
SHORT = replace(SMALL, images=4 * 48)


def pictures() -> MemoryDataset:
    """The digits: small, real."""
    return digits_dataset()


@pytest.fixture(scope="module")
def trained():
    return train_encoder(pictures(), SMALL, CPU)


@pytest.fixture(scope="module")
def named(trained, tmp_path_factory) -> str:
    """The teacher's name."""
    file = tmp_path_factory.mktemp("encoder") / "mine.safetensors"
    write_encoder(file, *trained)
    return f"encoder:{file}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Twenty crops of photographs in two classes."""
    return write_classes(tmp_path_factory.mktemp("photographs"), 10)


@pytest.fixture(scope="module")
def pixels(folder, tmp_path_factory) -> Path:
    """They as a dataset of pixels."""
    recipe = Recipe(size=16, latents="pixels")
    return run_job(PrepareJob(source=folder, out=tmp_path_factory.mktemp("pixels") / "data", recipe=recipe)).folder


# ---- training ---------------------------------------------------------------------------------------------------------


def test_views_of_an_image_are_told_from_others(trained):
    """The loss of one step is that of the first weights."""
    _, shape, origin = trained
    assert origin.final_loss < train_encoder(pictures(), replace(SMALL, images=48), CPU)[2].final_loss - 0.3
    assert shape == Shape(side=8, width=16, blocks=1, features=12)


def test_a_seed_has_its_bits_whatever_the_labels():
    data = pictures()
    once, _, origin = train_encoder(data, SHORT, CPU)
    relabelled = MemoryDataset(data.pixels, data.labels.flip(0), data.num_classes)
    again, _, other = train_encoder(relabelled, SHORT, CPU)
    assert digest(once) == digest(again) and origin.dataset_sha256 == other.dataset_sha256
    assert digest(train_encoder(data, replace(SHORT, seed=1), CPU)[0]) != digest(once)


def test_training_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    train_encoder(pictures(), replace(SHORT, images=48), CPU)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_origin_is_what_was_done(trained):
    _, shape, origin = trained
    assert (origin.kind, origin.images_seen, origin.batch, origin.seed, origin.dataset_rows) == ("simclr", 3840, 48, 0, 1437)
    # Two views of each image, forward and both gradients, but none of the pixels'; head and loss are large beside this network.
    assert 5 < origin.training_flops / origin.images_seen / files._count(shape) < 8


def test_each_epoch_shows_every_image_once_in_its_own_order():
    found = [rows.tolist() for rows in batches(10, 5, 4, seed=0)]
    assert sorted(found[0] + found[1]) == sorted(found[2] + found[3]) == list(range(10))
    assert found[0] + found[1] != found[2] + found[3]


def test_large_images_are_read_smaller(pixels):
    dataset = open_dataset(DataConfig(name="store", path=str(pixels)))
    assert read_images(dataset, 8).shape == (20, 3, 8, 8) and read_images(dataset, 8).dtype == torch.uint8
    assert torch.equal(read_images(dataset, 16), dataset.images(np.arange(20)))


def test_a_loss_that_is_no_number_ends_it(monkeypatch):
    monkeypatch.setattr("erw.teachers.train_encoder.nt_xent", lambda views, temperature: views.sum() * math.nan)
    with pytest.raises(UserError, match="the encoder's loss is nan after 1 steps: lower --lr"):
        train_encoder(pictures(), SMALL, CPU)


# ---- the file ---------------------------------------------------------------------------------------------------------


def test_the_file_gives_the_network_back(named, trained):
    weights, shape, origin = trained
    found = describe(named)
    assert (found.shape, found.origin, found.digest) == (shape, origin, digest(weights))
    encoder = ImageEncoder(shape)
    encoder.load_state_dict(weights)
    images = pictures().pixels[:4]
    expected = encoder.eval()(images.expand(-1, 3, -1, -1)).flatten(2).transpose(1, 2)
    teacher = load_teacher(named, CPU, 2, TeacherConfig(name=named, precision="fp32"))
    torch.testing.assert_close(teacher.tokens(images), expected.detach(), rtol=1e-4, atol=1e-5)
    assert (teacher.training_flops, teacher.identity()["digest"]) == (origin.training_flops, found.digest)


def test_tokens_have_no_mean_and_one_deviation(named):
    """What the last norm is for, over the data that it was trained on (in views of them)."""
    tokens = load_teacher(named, CPU, 2, TeacherConfig(name=named, precision="fp32")).tokens(pictures().pixels)
    assert tokens.shape == (1437, 4, 12)
    assert tokens.mean(dim=(0, 1)).abs().max() < 1 and 0.3 < tokens.std(dim=(0, 1)).mean() < 2


def test_other_sides_and_grids_are_resampled(named):
    teacher = load_teacher(named, CPU, 4, TeacherConfig(name=named))
    big = torch.randint(0, 256, (2, 3, 20, 20), dtype=torch.uint8)
    encoded = teacher.encode(big)
    assert encoded.tokens.shape == (2, 16, 12) and encoded.tokens.dtype == torch.bfloat16 and encoded.class_token is None
    assert not teacher.train().training


def _damaged(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "cut":
        path.write_bytes(content[:-100])
    elif how == "bit":
        path.write_bytes(content[:-100] + bytes([content[-100] ^ 64]) + content[-99:])
    elif how == "text":
        path.write_text("hello")
    elif how == "other":
        save_file({"w": torch.zeros(3)}, path)
    elif how == "garbled":
        save_file(load_file(path), path, {"format": files._FORMAT, "facts": json.dumps({"shape": {"side": 8}})})
    else:
        path.unlink()


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("gone", "is not there: train it with erw encoder DATASET --out"),
        ("cut", "is cut short or no safetensors file"),
        ("text", "is cut short or no safetensors file"),
        ("other", "was not written by erw encoder, or by another version of it"),
        ("garbled", "does not say what it is"),
        ("bit", "is damaged (its checksum is wrong)"),
    ],
)
def test_a_file_that_cannot_be_used_is_said_in_a_line(named, how, says, tmp_path, capsys):
    file = shutil.copy(named.removeprefix("encoder:"), tmp_path / "it.safetensors")
    _damaged(file, how)
    with pytest.raises(SystemExit) as stopped:
        main(["eval", "--reference", "digits", "--features", f"encoder:{file}", "--save-reference", str(tmp_path / "s.npz")])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1 and says in error and str(file) in error
    assert not (tmp_path / "s.npz").exists()


def test_a_stop_leaves_no_half_file(pixels, tmp_path, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("erw.teachers.train_encoder.nt_xent", stop)
    with pytest.raises(KeyboardInterrupt):
        train_to(tmp_path / "it.safetensors", str(pixels), SMALL, CPU)
    assert list(tmp_path.iterdir()) == []


# ---- the command ------------------------------------------------------------------------------------------------------


def test_the_command_writes_a_teacher(pixels, tmp_path, capsys):
    file = tmp_path / "it.safetensors"
    main(["encoder", str(pixels), "--out", str(file), "--epochs", "2", "--batch", "10", "--width", "8", "--features", "6"])
    assert capsys.readouterr().out.startswith(f"encoder:{file}: 40 images, loss ")
    found = describe(f"encoder:{file}")
    assert (found.shape.side, found.shape.features, found.origin.images_seen) == (16, 6, 40)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--out", "it.pt"], "--out it.pt: a .safetensors file"),
        (["--out", "a,b.safetensors"], "no comma or equals sign"),
        (["--out", "no/such/it.safetensors"], "there is no folder no/such: make it"),
        (["--out", "x.safetensors", "--batch", "1"], "--batch must be at least 2"),
        (["--out", "x.safetensors", "--side", "30"], "--side 30 is not a multiple of 4"),
        (["--out", "x.safetensors", "--epochs", "0"], "--epochs and --lr must be above 0"),
        (["--out", "x.safetensors", "--device", "warp"], "--device warp is no device"),
        (["--out", "x.safetensors", "--epochs", "many"], "invalid float value: 'many'"),
    ],
)
def test_mistakes_are_said_in_a_line(arguments, says, pixels, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["encoder", str(pixels), *arguments])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1 and says in error
    assert list(tmp_path.iterdir()) == []


# ---- where the name goes ----------------------------------------------------------------------------------------------


def test_a_teacher_by_its_file(named):
    (spec,) = teacher_specs(TeacherConfig(name=named), 16)
    assert (spec.name, spec.width, spec.grid, spec.has_class_token) == (named, 12, 16, False)
    assert teacher_flops(named) == load_teacher(named, CPU).flops > 0
    with pytest.raises(UserError, match="--teacher.file is not for encoder:"):
        load_teacher(named, CPU, 16, TeacherConfig(name=named, file="weights.pt"))
    with pytest.raises(UserError, match="--teacher.side 64 is not for encoder:.* which sees 8 pixels"):
        load_teacher(named, CPU, 16, TeacherConfig(name=named, side=64))
    with pytest.raises(UserError, match="encoder:FILE what erw encoder trained"):
        teacher_specs(TeacherConfig(name="encoders:it"))


def test_prepared_trained_and_planned_with(named, folder, tmp_path):
    """The dataset says which weights its features are of; a run takes them by name, and its plan counts them."""
    recipe = Recipe(size=16, latents="pixels", teachers=named)
    made = run_job(PrepareJob(source=folder, out=tmp_path / "data", recipe=recipe))
    (entry,) = made.manifest.facts["teachers"]
    assert (entry["name"], entry["digest"], entry["flops_per_image"]) == (named, describe(named).digest, teacher_flops(named))
    words = ["--data.path", str(made.folder), "--model.depth", "2", "--model.width", "32", "--model.num_heads", "2",
             "--method.depth", "1"]  # fmt: skip
    config, dataset = open_data(override(preset("folder-repa"), words))
    assert config.teacher.name == named and dataset.cached[named].flops == teacher_flops(named)
    tokens = load_teacher(named, CPU, config.model.grid, TeacherConfig(name=named, precision="fp32")).tokens(
        dataset.images(np.arange(20))
    )
    torch.testing.assert_close(dataset.features(named, np.arange(20)).float(), tokens, rtol=1e-2, atol=1e-2)
    online = replace(config, teacher=replace(config.teacher, source="online"))
    assert Costs(online).teacher(online.method.phase(0)) == teacher_flops(named, config.model.grid)
    FeatureSource(config.active_teacher, dataset, CPU, grid=config.model.grid)
    dataset.cached[named] = replace(dataset.cached[named], digest="0" * 64)
    with pytest.raises(UserError, match="with other weights than the file has now: prepare the dataset again"):
        FeatureSource(config.active_teacher, dataset, CPU, grid=config.model.grid)


def test_it_judges_and_knows_its_statistics(named, trained, pixels, tmp_path):
    file = tmp_path / "mine.safetensors"
    shutil.copy(named.removeprefix("encoder:"), file)
    name, reference = f"encoder:{file}", tmp_path / "s.npz"
    open_reference(str(pixels), load_extractor(name, CPU), progress=False).save(reference)
    images = open_dataset(DataConfig(name="store", path=str(pixels))).images(np.arange(20)).float() / 127.5 - 1
    judge = load_feature_judge(CPU, str(reference), 20)
    found = judge.evaluate(images, torch.zeros(20))
    worse = judge.evaluate(torch.rand(20, 3, 16, 16) * 2 - 1, torch.zeros(20))
    assert found["frechet"] == pytest.approx(0, abs=1e-3) and worse["frechet"] > 0.1
    weights, shape, origin = train_encoder(pictures(), replace(SHORT, seed=3), CPU)
    write_encoder(file, weights, shape, origin)
    with pytest.raises(UserError, match="was made with weights"):
        load_feature_judge(CPU, str(reference), 20)


def test_samples_are_evaluated_with_it(named, pixels, tmp_path, capsys):
    """The record's file has no part of the path in it."""
    rows = open_dataset(DataConfig(name="store", path=str(pixels))).images(np.arange(20))
    np.savez(tmp_path / "samples.npz", rows.permute(0, 2, 3, 1).numpy())
    main(["eval", str(tmp_path / "samples.npz"), "--features", named, "--reference", str(pixels), "--allow-few"])
    (record,) = tmp_path.glob("samples-eval-encoder*.json")
    found = json.loads(record.read_text())
    assert found["results"][named]["frechet"] == pytest.approx(0, abs=1e-3) and str(record) in capsys.readouterr().out
