"""Checkpoints: whole or not there at all, verified when read, and refused where they do not fit."""

import json
import os

import pytest
import torch

from erw import checkpoint
from erw.checkpoint import Meta, check_same_run, found, locate, read_meta, read_tensors, save
from erw.errors import UserError
from erw.presets import preset
from erw.settings import to_dict


def meta(images: int) -> Meta:
    return Meta(images=images, phase="train", steps=1, config=to_dict(preset("digits-sit")), accounts={})


def read(key: str) -> dict[str, torch.Tensor]:
    return {"a": torch.arange(1000.0), "b": torch.ones(3)}


def write(folder, images: int, keep: int = 3):
    return save(folder, meta(images), read, {"pos_embed": torch.zeros(4)}, keep=keep, writes=True)


def test_what_was_written_is_read(tmp_path):
    path = write(tmp_path, 64)
    assert read_meta(path).images == 64
    assert torch.equal(read_tensors(path, "exp_avg")["a"], torch.arange(1000.0))
    assert set(read_tensors(path, "ema")) == {"a", "b", "pos_embed"} and set(read_tensors(path, "exp_avg")) == {"a", "b"}


def test_the_last_k_are_kept(tmp_path):
    for images in (10, 20, 30, 40):
        write(tmp_path, images, keep=2)
    assert [int(p.name) for p in found(tmp_path)] == [30, 40]
    assert not list(tmp_path.glob(".*"))


class Killed(Exception):
    pass


@pytest.mark.parametrize("dies_at", ["weights", "ema", "exp_avg_sq", "rename"])
def test_a_kill_at_any_moment_leaves_the_one_before(tmp_path, dies_at, monkeypatch):
    write(tmp_path, 10)

    def dying(key: str):
        if key == dies_at:
            raise Killed
        return read(key)

    if dies_at == "rename":
        monkeypatch.setattr(os, "rename", lambda *a: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        save(tmp_path, meta(20), dying, {}, keep=3, writes=True)
    assert [int(p.name) for p in found(tmp_path)] == [10]
    assert read_meta(found(tmp_path)[-1]).images == 10
    monkeypatch.undo()
    assert read_meta(write(tmp_path, 20)).images == 20


def test_ranks_that_do_not_write_leave_no_trace(tmp_path):
    asked = []
    save(tmp_path / "none", meta(5), lambda key: asked.append(key) or read(key), {}, keep=1, writes=False)
    assert asked == list(checkpoint.KEYS) and not (tmp_path / "none").exists()


def test_a_truncated_file_is_named(tmp_path):
    path = write(tmp_path, 64)
    file = path / "ema.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UserError, match="ema.safetensors is truncated: delete"):
        read_meta(path)
    file.unlink()
    with pytest.raises(UserError, match="ema.safetensors is missing"):
        read_meta(path)


def test_a_flipped_bit_is_named(tmp_path):
    path = write(tmp_path, 64)
    file = path / "weights.safetensors"
    data = bytearray(file.read_bytes())
    data[-7] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match="weights.safetensors does not match its checksum"):
        read_tensors(path, "weights")


def test_another_version_is_refused(tmp_path):
    path = write(tmp_path, 64)
    data = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps({**data, "format": 99}))
    with pytest.raises(UserError, match="has format 99, this version of erw reads format 1"):
        read_meta(path)
    (path / "meta.json").write_text("{")
    with pytest.raises(UserError, match="meta.json cannot be read"):
        read_meta(path)


def test_locate_finds_the_newest_of_a_run_and_refuses_the_rest(tmp_path):
    write(tmp_path / "checkpoints", 10)
    newest = write(tmp_path / "checkpoints", 20)
    assert locate(tmp_path) == newest and locate(newest) == newest
    with pytest.raises(UserError, match="neither a checkpoint nor"):
        locate(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [("model", "depth", 5), ("method", "name", "repa"), ("train", "seed", 9), ("train", "batch", 64), ("optim", "lr", 0.5)],
)
def test_a_resume_that_would_be_another_run_is_refused(tmp_path, section, field, value):
    config = to_dict(preset("digits-sit"))
    stored = Meta(**json.loads(json.dumps(meta(1).__dict__)))  # as JSON gives it back: lists for tuples
    check_same_run(stored, config, tmp_path)
    config[section][field] = value
    with pytest.raises(UserError, match=f"--{section}.{field}"):
        check_same_run(stored, config, tmp_path)


def test_length_and_place_may_change(tmp_path):
    config = to_dict(preset("digits-sit"))
    config["train"] |= {"images": 1, "out": "elsewhere", "save_every": 7}
    config["data"]["path"] = "/other/disk"
    check_same_run(meta(1), config, tmp_path)
