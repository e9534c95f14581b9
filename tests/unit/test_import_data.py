"""Latents that REPA's and LightningDiT's scripts encoded become a dataset: each row with its label, or an error."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from erw.commands.import_data import run
from erw.data.store import StoreDataset
from erw.errors import UserError
from erw.prepare.imports.job import ImportJob, run_import

COUNT = 12


@pytest.fixture
def repa(tmp_path):
    """Twelve images and moments that hold their number, as REPA's scripts lay them out."""
    folder, labels = tmp_path / "repa", []
    for number in range(COUNT):
        place = f"{number // 8:05d}"
        for kind in ("images", "vae-sd"):
            (folder / kind / place).mkdir(parents=True, exist_ok=True)
        moments = np.full((8, 4, 4), number / 4, np.float32)
        name = f"{place}/img-mean-std-{number:08d}.npy"
        np.save(folder / "vae-sd" / name, moments)
        Image.fromarray(np.full((32, 32, 3), number, np.uint8)).save(folder / "images" / place / f"img{number:08d}.png")
        labels.append([name, number % 5])
    (folder / "vae-sd" / "dataset.json").write_text(json.dumps({"labels": labels}))
    (folder / "images" / "dataset.json").write_text(json.dumps({"labels": None}))
    return folder


@pytest.fixture
def lightning(tmp_path):
    """Three files of four latents each, mirrored ones and statistics."""
    folder = tmp_path / "lightning"
    folder.mkdir()
    for part in range(3):
        number = torch.arange(part * 4, part * 4 + 4).float()
        latents = number.view(-1, 1, 1, 1).expand(4, 6, 4, 4).contiguous()
        save_file({"latents": latents, "latents_flip": latents + 100, "labels": number.long() % 5},
                  folder / f"latents_rank{part:02d}_shard000.safetensors")  # fmt: skip
    statistics = {"mean": torch.arange(6.0).view(1, 6, 1, 1), "std": torch.full((1, 6, 1, 1), 2.0)}
    torch.save(statistics, folder / "latents_stats.pt")
    return folder


def rows_of(dataset: StoreDataset) -> tuple[list[float], list[int], list[str]]:
    rows = np.arange(len(dataset))
    batch = dataset.fetch(rows)
    return batch["latents"][:, 0, 0, 0].tolist(), batch["labels"].tolist(), dataset.texts("names", rows)


def test_repas_moments_come_with_their_labels_and_images(repa, tmp_path):
    run_import(ImportJob(source=repa, out=tmp_path / "data", images=True, shard=5))
    dataset = StoreDataset(str(tmp_path / "data"))
    numbers, labels, names = rows_of(dataset)
    assert sorted(numbers) == [n / 4 for n in range(COUNT)] and numbers != sorted(numbers)
    assert labels == [int(n * 4) % 5 for n in numbers]
    assert names == [f"{int(n * 4) // 8:05d}/img-mean-std-{int(n * 4):08d}.npy" for n in numbers]
    assert dataset.images(np.arange(COUNT))[:, 0, 0, 0].tolist() == [int(n * 4) for n in numbers]
    assert (dataset.channels, dataset.size, dataset.num_classes, dataset.has_images) == (8, 4, 5, True)
    stored = dataset.stored
    assert (stored.kind, stored.vae, stored.scale, stored.channels) == ("vae", "stabilityai/sd-vae-ft-mse", 0.18215, 4)
    assert dataset.blocks.shard_rows == (5, 5, 2)


def test_lightningdits_latents_come_mirrored_and_normalised(lightning, tmp_path):
    run_import(ImportJob(source=lightning, out=tmp_path / "data", vae="some/tokenizer", shard=5, classes=10))
    dataset = StoreDataset(str(tmp_path / "data"))
    numbers, labels, names = rows_of(dataset)
    assert sorted(numbers[:COUNT]) == list(range(COUNT)) and numbers[COUNT:] == [n + 100 for n in numbers[:COUNT]]
    assert labels == [int(n) % 100 % 5 for n in numbers] and dataset.num_classes == 10
    assert names[0] == f"latents_rank{int(numbers[0]) // 4:02d}_shard000.safetensors:{int(numbers[0]) % 4}"
    stored = dataset.stored
    assert (stored.kind, stored.channels, stored.vae) == ("latents", 6, "some/tokenizer")
    assert stored.scale == (0.5,) * 6 and stored.shift == (0, 1, 2, 3, 4, 5)


def test_a_run_that_was_stopped_goes_on_and_gives_the_same_bytes(repa, tmp_path, monkeypatch):
    run_import(ImportJob(source=repa, out=tmp_path / "whole", shard=3))
    from erw.prepare.imports import job

    write, calls = job.write_shard, []

    def stops(*arguments):
        calls.append(arguments[1])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return write(*arguments)

    monkeypatch.setattr(job, "write_shard", stops)
    with pytest.raises(KeyboardInterrupt):
        run_import(ImportJob(source=repa, out=tmp_path / "data", shard=3))
    assert not (tmp_path / "data" / "manifest.json").exists()
    run_import(ImportJob(source=repa, out=tmp_path / "data", shard=3))
    assert calls == [0, 1, 2, 2, 3]
    for file in (tmp_path / "whole").glob("*.*"):
        assert (tmp_path / "data" / file.name).read_bytes() == file.read_bytes()
    run_import(ImportJob(source=repa, out=tmp_path / "data", shard=3))
    assert len(calls) == 5
    with pytest.raises(UserError, match="was begun with shard 3, this command has 4"):
        run_import(ImportJob(source=repa, out=tmp_path / "data", shard=4))


def refused(folder, out, **options) -> str:
    with pytest.raises(UserError) as caught:
        run_import(ImportJob(source=folder, out=out, **options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def image(folder, number: int):
    return folder / "images" / f"{number // 8:05d}" / f"img{number:08d}.png"


def moments(folder, number: int):
    return folder / "vae-sd" / f"{number // 8:05d}" / f"img-mean-std-{number:08d}.npy"


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda f: image(f, 3).unlink(), "img-mean-std-00000003.npy has no image of its number in"),
        (lambda f: image(f, 3).rename(image(f, 3).with_name("img00000099.png")), "img-mean-std-00000003.npy has no image"),
        (
            lambda f: image(f, 3).with_name("img00000099.png").write_bytes(b""),
            "img00000099.png has no moments of its number",
        ),
        (lambda f: image(f, 3).with_name("x.png").write_bytes(b""), "x.png has no number in its name"),
        (lambda f: image(f, 3).with_suffix(".jpg").write_bytes(b""), "are of the same number: keep one"),
        (lambda f: moments(f, 9).unlink(), "img-mean-std-00000009.npy is missing; dataset.json names it (1 such)"),
        (lambda f: np.save(moments(f, 9), np.zeros((8, 4, 5))), "img-mean-std-00000009.npy holds (8, 4, 5), not moments"),
        (lambda f: np.save(moments(f, 9), np.zeros((8, 5, 5))), "holds (8, 5, 5), 00000/img-mean-std-00000000.npy (8, 4, 4)"),
        (lambda f: np.save(moments(f, 9), np.full((8, 4, 4), np.nan)), "img-mean-std-00000009.npy holds NaN, infinity or"),
        (lambda f: moments(f, 9).write_bytes(moments(f, 9).read_bytes()[:200]), "img-mean-std-00000009.npy cannot be read ("),
        (lambda f: moments(f, 9).write_bytes(b""), "img-mean-std-00000009.npy cannot be read ("),
        (lambda f: (f / "vae-sd" / "dataset.json").unlink(), "dataset.json is missing: it says the images' labels"),
        (lambda f: (f / "vae-sd" / "dataset.json").write_text('{"labels": null}'), "dataset.json has no labels as REPA's"),
        (lambda f: image(f, 7).write_bytes(b"no image"), "img00000007.png cannot be read ("),
        (lambda f: Image.new("RGB", (16, 32)).save(image(f, 7)), "img00000007.png is 16x32, its moments are of 32x32"),
    ],
)
def test_what_does_not_fit_in_repas_folder_is_named(repa, tmp_path, damage, line):
    damage(repa)
    assert line in refused(repa, tmp_path / "data", images=True)


def test_a_file_without_a_label_is_named(repa, tmp_path):
    np.save(moments(repa, 11).with_name("img-mean-std-00000098.npy"), np.zeros((8, 4, 4), np.float32))
    assert "img-mean-std-00000098.npy has no label in dataset.json (1 such)" in refused(repa, tmp_path / "data")


def file_of(labels: int) -> dict:
    return {"latents": torch.zeros(2, 6, 4, 4), "labels": torch.zeros(labels)}


def part(folder, number: int):
    return folder / f"latents_rank{number:02d}_shard000.safetensors"


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda f: part(f, 1).write_bytes(part(f, 1).read_bytes()[:-40]), "rank01_shard000.safetensors cannot be read ("),
        (lambda f: save_file({"latents": torch.zeros(2, 6, 4, 4)}, part(f, 1)), "rank01_shard000.safetensors holds latents: "),
        (
            lambda f: save_file({"latents": torch.zeros(2, 6, 4, 4), "labels": torch.zeros(3)}, part(f, 1)),
            "labels (3,): they do",
        ),
        (
            lambda f: save_file({"latents": torch.zeros(2, 6, 4, 4), "labels": torch.zeros(2)}, part(f, 1)),
            "not of one extraction",
        ),
        (lambda f: (f / "latents_stats.pt").unlink(), "latents_stats.pt is missing: it says how the latents are normalised"),
        (lambda f: (f / "latents_stats.pt").write_bytes(b"x"), "latents_stats.pt cannot be read ("),
        (lambda f: torch.save({"mean": torch.zeros(1, 4), "std": torch.ones(1, 4)}, f / "latents_stats.pt"), "of 4 channels"),
    ],
)
def test_what_does_not_fit_in_lightningdits_folder_is_named(lightning, tmp_path, damage, line):
    damage(lightning)
    assert line in refused(lightning, tmp_path / "data", vae="some/tokenizer")


def test_a_latent_that_is_not_finite_is_named(lightning, tmp_path):
    latents = torch.zeros(4, 6, 4, 4)
    latents[2, 0, 0, 0] = torch.nan
    save_file({"latents": latents, "latents_flip": latents.clone(), "labels": torch.zeros(4).long()}, part(lightning, 2))
    assert f"{part(lightning, 2)} holds NaN or infinity in row 2" in refused(lightning, tmp_path / "data", vae="v")


def test_the_command_says_what_it_wrote_and_what_it_cannot_do(repa, lightning, tmp_path, capsys):
    run([str(repa), "--out", str(tmp_path / "data")])
    assert capsys.readouterr().out == f"{tmp_path / 'data'}: 12 rows, 5 classes\n"
    assert "does not tell what encoded its latents: name it with --vae" in refused(lightning, tmp_path / "other")
    assert "holds LightningDiT's latents and no images" in refused(lightning, tmp_path / "other", images=True)
    assert "--classes 3: labels run to 4" in refused(repa, tmp_path / "other", classes=3)
    assert "has neither a folder vae-sd (REPA) nor *.safetensors" in refused(tmp_path / "data", tmp_path / "other")
    assert "is not a folder" in refused(tmp_path / "nowhere", tmp_path / "other")
