"""The study's preparation on forty pictures, with a second encoder of our own in EfficientNet's place."""

import json
import shutil
import tarfile

import pytest

from erw.bench import cifar10, encoders
from erw.bench.convergence.plan import plan
from erw.bench.convergence.study import read_study
from erw.data.store import StoreDataset
from erw.errors import UserError
from erw.evaluate.statistics import read_statistics
from photographs import write_classes


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """train and test, ten images of each of two classes in each."""
    folder = tmp_path_factory.mktemp("archive")
    for split in ("train", "test"):
        write_classes(folder / split, 10, 32, 32)
    file = folder / "it.tar.xz"
    with tarfile.open(file, "w:xz") as tar:
        for split in ("test", "train"):
            tar.add(folder / split, split)
    return file


@pytest.fixture
def other(archive, tmp_path_factory, monkeypatch):
    """A run into another folder, whose encoder is then known as the packaged one."""
    out = tmp_path_factory.mktemp("other")
    monkeypatch.setattr(cifar10, "PACKAGED", "digits-contrastive")
    steps = cifar10.Steps(
        archive, out, 0, cifar10.EncoderConfig(epochs=1, batch=10, width=4, seed=5), cifar10.torch.device("cpu")
    )
    steps._prepare(archive, "train", steps.file("-pixels"))
    steps._train()
    file = shutil.copy(steps.file("-encoder.safetensors"), out / "packaged.safetensors")
    monkeypatch.setattr(cifar10, "PACKAGED", f"encoder:{file}")
    return f"encoder:{file}"


def test_everything_once_and_nothing_twice(archive, other, tmp_path, capsys):
    arguments = [str(archive), "--images-per-class", "4", "--epochs", "2", "--width", "8", "--out", str(tmp_path / "data")]
    cifar10.main([*arguments, "--record", str(tmp_path / "record.json")])
    record = json.loads((tmp_path / "record.json").read_text())
    mine = f"encoder:{tmp_path / 'data' / 'cifar10-encoder.safetensors'}"
    assert set(record["encoders"]) == {mine, other} and record["images"] == {"fitted_on": 20, "scored_on": 20}
    winner, accuracies = record["winner"], {n: e["accuracy"]["mean"] for n, e in record["encoders"].items()}
    assert accuracies[winner] == max(accuracies.values()) > 0.5  # two photographs: chance is a half
    dataset = StoreDataset(str(tmp_path / "data/cifar10-4"))
    assert len(dataset) == 8 and list(dataset.cached) == [winner] and dataset.cached[winner].spec.grid == 16
    (judge,) = set(accuracies) - {winner}
    reference = read_statistics(tmp_path / "data/cifar10-judge.npz")
    assert (reference.protocol["features"], reference.moments.count) == (judge, 20)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == (f"python -m erw.bench.convergence cifar10-cpu --data {tmp_path}/data/cifar10-4 --teacher {winner}"
                    f" --judge {tmp_path}/data/cifar10-judge.npz")  # fmt: skip
    cifar10.main(arguments)
    again = capsys.readouterr().out
    assert again.splitlines()[-1] == last and again.count("was there") == 6
    with pytest.raises(SystemExit):
        cifar10.main([*arguments, "--width", "16"])
    assert "has width 8 and seed 0, asked are 16 and 0: remove it" in capsys.readouterr().err


def test_the_first_of_each_class_by_name(archive):
    with tarfile.open(archive) as tar:
        found = cifar10.first_of_each(tar, "train", 2)
        assert [name for name, _ in found] == [f"train/{c}/00{i}.jpg" for c in ("flower", "temple") for i in (0, 1)]
        assert found[3][1] == tar.extractfile("train/temple/001.jpg").read()
        with pytest.raises(UserError, match="--images-per-class 11: a class of train has 10 images"):
            cifar10.first_of_each(tar, "train", 11)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nothing.tar"], "nothing.tar is not a file"),
        (["ARCHIVE", "--images-per-class", "-1"], "--images-per-class must not be negative"),
    ],
)
def test_mistakes_are_said_in_a_line(arguments, says, archive, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        cifar10.main([str(archive) if word == "ARCHIVE" else word for word in arguments])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1 and says in error and list(tmp_path.iterdir()) == []


def test_a_record_without_a_folder_is_refused_before_the_work(tmp_path, capsys):
    with pytest.raises(SystemExit):
        encoders.main(["a", "b", "--encoders", "digits-contrastive", "--record", str(tmp_path / "no/it.json")])
    assert "there is no folder" in capsys.readouterr().err


def test_a_study_with_another_teacher_and_judge(tmp_path):
    study = read_study("cifar10-cpu").on(tmp_path, "dinov2-s", tmp_path / "judge.npz")
    configs = plan(study)
    assert {name: c.teacher.name for name, c in configs.items()} == {"sit": "none", "repa": "dinov2-s", "erw": "dinov2-s"}
    assert all(c.data.path == str(tmp_path) and c.eval.reference == str(tmp_path / "judge.npz") for c in configs.values())
