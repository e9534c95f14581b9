"""Checkpoints: whole or not there at all, verified when read, and refused where they do not fit."""

import json
import os
import threading

import pytest
import torch
from safetensors import SafetensorError

from erw import checkpoint
from erw.checkpoint import (
    Meta,
    Saver,
    agreed,
    check_same_run,
    fault,
    found,
    locate,
    newest_sound,
    read_meta,
    read_tensors,
    save,
    sweep,
)
from erw.engine.ranks import Ranks
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


def test_length_place_and_execution_may_change(tmp_path):
    config = to_dict(preset("digits-sit"))
    stored = meta(1)
    stored.config["teacher"] |= {"name": "dinov2-b", "file": "weights.pth"}
    config["train"] |= {"images": 1, "out": "elsewhere", "save_every": 7}
    config["data"]["path"] = "/other/disk"
    config["teacher"] |= {"name": "dinov2-b", "file": "/other/disk/weights.pth", "compile": True}
    check_same_run(stored, config, tmp_path)


def damage(path, how: str) -> str:
    """Truncate a file of a checkpoint or flip a bit of it; what the user reads about that."""
    file = path / "weights.safetensors"
    data = bytearray(file.read_bytes())
    if how == "truncated":
        file.write_bytes(data[:-10])
        return "weights.safetensors is truncated"
    if how == "without a description":
        (path / "meta.json").unlink()
        return "meta.json cannot be read"
    data[-7] ^= 1
    file.write_bytes(data)
    return "weights.safetensors does not match its checksum"


@pytest.mark.parametrize("how", ["truncated", "flipped", "without a description"])
def test_a_damaged_newest_one_is_kept_aside_and_the_one_before_is_taken(tmp_path, how):
    good = write(tmp_path, 10)
    bad = write(tmp_path, 20)
    why = damage(bad, how)
    path, lines = newest_sound(tmp_path)
    assert path == good and found(tmp_path) == [good]
    assert len(lines) == 1 and lines[0].startswith("WARNING: ") and why in lines[0]
    assert lines[0].endswith(f"kept as .corrupt-{bad.name}; going on from {good}")
    assert (tmp_path / f".corrupt-{bad.name}" / "ema.safetensors").exists()
    assert newest_sound(tmp_path) == (good, [])
    damage(write(tmp_path, 20), how)
    assert newest_sound(tmp_path)[0] == good and (tmp_path / f".corrupt-{bad.name}-2").is_dir()


def test_nothing_is_chosen_or_renamed_where_all_are_damaged(tmp_path):
    damage(write(tmp_path, 10), "flipped")
    with pytest.raises(UserError, match=r"every checkpoint below .* is damaged \(.*weights.safetensors does not match"):
        newest_sound(tmp_path)
    assert len(found(tmp_path)) == 1
    assert newest_sound(tmp_path / "empty") == (None, [])


def test_a_damaged_one_is_replaced_when_its_image_comes_again(tmp_path):
    damage(write(tmp_path, 10), "flipped")
    assert fault(write(tmp_path, 10)) is None


def test_a_mistake_that_the_first_rank_finds_is_raised(tmp_path):
    def find():
        raise UserError("nothing there")

    ranks = Ranks(0, 1, torch.device("cpu"))
    with pytest.raises(UserError, match="nothing there"):
        agreed(ranks, find)
    assert agreed(ranks, lambda: (tmp_path, ["a line"])) == (tmp_path, ["a line"])
    assert agreed(ranks, lambda: (None, [])) == (None, [])


def test_what_killed_processes_left_is_swept(tmp_path):
    kept = write(tmp_path, 10)
    for name in (".partial-000000000020", ".old-000000000005", ".corrupt-000000000007"):
        (tmp_path / name).mkdir()
    sweep(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".corrupt-000000000007", kept.name]


@pytest.mark.parametrize("background", [True, False])
def test_a_saver_writes_what_was_there_when_it_was_called(tmp_path, background):
    saver, state = Saver(tmp_path, 9, True, background), {"a": torch.zeros(3)}
    for images in (10, 20):
        saver.save(meta(images), lambda key: {"a": state["a"].clone()}, {})
        state["a"] += 1
    saver.wait()
    assert saver.poll() == [f"saved {path}" for path in found(tmp_path)] and len(found(tmp_path)) == 2
    assert [read_tensors(path, "exp_avg")["a"].tolist() for path in found(tmp_path)] == [[0.0] * 3, [1.0] * 3]
    assert saver.poll() == [] and not saver.failed


def test_the_loop_does_not_wait_for_a_slow_disk_and_a_second_save_does(tmp_path, monkeypatch):
    slow, events, sync = threading.Event(), [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (slow.wait(10), sync(file)))
    saver = Saver(tmp_path, 9, True, True)
    saver.save(meta(10), read, {})
    assert saver.poll() == [] and not found(tmp_path)
    threading.Timer(0.2, lambda: (events.append("released"), slow.set())).start()
    saver.save(meta(20), read, {})
    assert events == ["released"] and [int(p.name) for p in found(tmp_path)][0] == 10
    saver.wait()
    assert len(saver.poll()) == 2


@pytest.mark.parametrize("background", [True, False])
def test_a_disk_that_takes_nothing_keeps_the_one_before_and_is_said(tmp_path, background, monkeypatch):
    saver = Saver(tmp_path, 1, True, background)
    saver.save(meta(10), read, {})
    saver.wait()
    saver.poll()

    def full(*_):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr("erw.checkpoint.write.save_file", full)
        saver.save(meta(20), read, {})
        saver.wait()
    [line] = saver.poll()
    assert line.startswith("WARNING: checkpoint ") and "No space left on device" in line
    assert line.endswith("000000000010 stays the newest; training goes on") and saver.failed
    assert [p.name for p in tmp_path.iterdir()] == ["000000000010"]
    saver.save(meta(30), read, {})
    saver.wait()
    assert saver.poll() == [f"saved {tmp_path / '000000000030'}"] and not saver.failed


def test_what_else_a_writer_dies_of_is_raised(tmp_path, monkeypatch):
    saver = Saver(tmp_path, 1, True, True)
    monkeypatch.setattr("erw.checkpoint.write.save_file", lambda *_: 1 / 0)
    saver.save(meta(10), read, {})
    saver.wait()
    with pytest.raises(ZeroDivisionError):
        saver.poll()
