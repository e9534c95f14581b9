"""``erw prepare`` in one process, on pixels: what lies in the dataset, and what happens when something goes wrong."""

import json
import os
import re
import shutil
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from erw.cli import main
from erw.data.store import StoreDataset
from erw.environment import version
from erw.errors import UserError
from erw.evaluate.images import open_images
from erw.files import lock
from erw.prepare import estimate, work
from erw.prepare.crop import centre_crop
from erw.prepare.decode import MAX_PIXELS
from erw.prepare.job import PrepareJob, run_job
from erw.prepare.recipe import Recipe, work_order
from erw.prepare.sources import open_source
from photographs import crop, encoded, unusable, write_classes

SIDE = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten crops of a flower and ten of a temple."""
    return write_classes(tmp_path_factory.mktemp("folder"), 10)


def job(source: Path, out: Path, **changes) -> PrepareJob:
    own = {name: changes.pop(name) for name in ("split", "processes", "max_bad_share") if name in changes}
    recipe = Recipe(**{"size": SIDE, "latents": "pixels", "shard": 6, "batch": 4} | changes)
    return PrepareJob(source=source, out=out, recipe=recipe, readers=2, **own)


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a dataset but the log, which tells times."""
    return {f.name: f.read_bytes() for f in sorted(folder.iterdir()) if f.is_file() and f.name != "preparing.jsonl"}


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """The undisturbed dataset."""
    return run_job(job(folder, tmp_path_factory.mktemp("whole") / "data")).folder


def test_rows_are_the_crops_with_labels_and_names(folder, whole):
    dataset = StoreDataset(str(whole))
    rows = np.arange(len(dataset))
    names, pixels = dataset.texts("names", rows), dataset.read("latents", rows)
    assert sorted(names) == sorted(str(f.relative_to(folder)) for f in folder.rglob("*.jpg"))
    for name, label, row in zip(names, dataset.read("labels", rows).tolist(), pixels, strict=True):
        expected = centre_crop(Image.open(folder / name), SIDE, MAX_PIXELS)
        assert np.array_equal(row.permute(1, 2, 0).numpy(), np.asarray(expected))
        assert label == ["flower", "temple"].index(name.split("/")[0])
    assert (dataset.channels, dataset.size, dataset.num_classes, pixels.dtype) == (3, SIDE, 2, torch.uint8)


def test_shards_mix_the_classes(whole):
    dataset = StoreDataset(str(whole))
    shards = dataset.read("labels", np.arange(20)).split([shard.rows for shard in dataset.manifest.shards])
    assert [len(shard) for shard in shards] == [6, 6, 6, 2] and all(len(set(shard.tolist())) == 2 for shard in shards[:3])


def test_the_manifest_says_how_it_was_made(folder, whole):
    facts = StoreDataset(str(whole)).manifest.facts
    asked = facts["asked"]
    assert asked["listing_sha256"] == open_source(folder).listing.digest
    assert (asked["size"], asked["latents"], asked["order"], asked["torch"]) == (SIDE, "pixels", "shuffled", version("torch"))
    assert facts["classes"] == [{"name": "flower", "images": 10}, {"name": "temple", "images": 10}]
    assert facts["left_out"] == [] and facts["other_files"] == [] and not (whole / ".work").exists()


def test_a_finished_dataset_is_left_alone(folder, whole):
    before = {f: f.stat().st_mtime_ns for f in whole.iterdir()}
    assert run_job(job(folder, whole)).added == 0
    assert {f: f.stat().st_mtime_ns for f in whole.iterdir()} == before


def test_it_is_a_reference_for_evaluation(folder, whole):
    images = open_images(whole)
    parts = np.concatenate(list(images.parts(7)))
    assert (images.count, images.shape, parts.dtype) == (20, (SIDE, SIDE, 3), np.uint8)
    assert np.array_equal(parts, StoreDataset(str(whole)).read("latents", np.arange(20)).permute(0, 2, 3, 1).numpy())
    assert images.labels.sum() == 10


def test_mirrored_rows_lie_in_shards_of_their_own(folder, whole, tmp_path):
    once, twice = StoreDataset(str(whole)), StoreDataset(str(run_job(job(folder, tmp_path / "data", flips=True)).folder))
    rows = np.arange(20)
    assert len(twice) == 40 and twice.manifest.facts["classes"][0]["images"] == 10
    assert torch.equal(twice.read("latents", rows), once.read("latents", rows))
    assert torch.equal(twice.read("latents", rows + 20), once.read("latents", rows).flip(-1))
    assert twice.texts("names", rows + 20) == once.texts("names", rows)


def test_the_order_of_the_source_and_of_its_blocks(folder, tmp_path):
    listing = open_source(folder).listing
    assert sorted(work_order(listing, True)) == list(range(20)) != list(work_order(listing, True))
    assert list(work_order(listing, False)) == list(range(20))
    listing = replace(listing, blocks=[5, 5, 5, 5])
    blocks = work_order(listing, True).reshape(4, 5)
    assert (blocks[:, 0] % 5 == 0).all() and (np.diff(blocks) == 1).all() and sorted(blocks[:, 0]) == [0, 5, 10, 15]


# ---- stopped and started again -------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Not an error that anything handles."""


def test_what_was_finished_is_not_done_again_and_the_bytes_are_the_same(folder, whole, tmp_path, monkeypatch):
    real, written = work.write_shard, []

    def dies_at_the_third(out, index, *rest):
        if len(written) == 2:
            raise Killed
        written.append(index)
        return real(out, index, *rest)

    monkeypatch.setattr(work, "write_shard", dies_at_the_third)
    with pytest.raises(Killed):
        run_job(job(folder, tmp_path / "data"))
    assert not (tmp_path / "data" / "manifest.json").exists()
    with pytest.raises(UserError, match="was begun with size 24, this command has 25: give the same to go on, or name another"):
        run_job(job(folder, tmp_path / "data", size=25))
    monkeypatch.setattr(work, "write_shard", real)
    assert run_job(job(folder, tmp_path / "data")).added == 20 - 12
    assert content(tmp_path / "data") == content(whole)


def test_a_source_that_changed_is_noticed(folder, whole, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    (other / "flower" / "000.jpg").write_bytes((folder / "temple" / "000.jpg").read_bytes())
    with pytest.raises(UserError, match="was begun with other images than the source has now"):
        run_job(job(other, whole))


def test_a_compressed_tar_is_the_same_dataset(folder, whole, tmp_path):
    with tarfile.open(tmp_path / "images.tar.xz", "w:xz") as archive:
        archive.add(folder, arcname=".")
    out = run_job(job(tmp_path / "images.tar.xz", tmp_path / "data")).folder
    ours, theirs = content(out), content(whole)
    assert {n: d for n, d in ours.items() if n != "manifest.json"} == {n: d for n, d in theirs.items() if n != "manifest.json"}
    assert not (out / ".work").exists()


def test_two_at_once_are_refused(folder, tmp_path):
    with lock(tmp_path / "data", "erw prepare"), pytest.raises(UserError, match="another erw prepare is at work in"):
        run_job(job(folder, tmp_path / "data"))
    assert run_job(job(folder, tmp_path / "data")).added == 20


# ---- bad input -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spoilt(folder, tmp_path_factory):
    """The twenty images and every kind that cannot be used."""
    copy = shutil.copytree(folder, tmp_path_factory.mktemp("spoilt") / "source")
    for name, (data, _) in unusable(SIDE).items():
        (copy / "flower" / name).write_bytes(data)
    (copy / "temple" / "dangling.jpg").symlink_to(copy / "nowhere")
    (copy / "temple" / "cmyk.jpg").write_bytes(encoded(crop(0, 30, 30).convert("CMYK"), "JPEG"))
    return copy


def test_more_than_the_share_is_an_error_and_loses_nothing(spoilt, tmp_path, capsys):
    arguments = [str(spoilt), "--out", str(tmp_path / "data"), "--size", str(SIDE), "--latents", "pixels", "--shard", "6"]
    with pytest.raises(SystemExit) as stopped:
        main(["prepare", *arguments, "--max-bad-share", "0.1"])
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert stopped.value.code == 2 and len(lines) == 1
    assert "of 30 images cannot be used, more than --max-bad-share 0.1 allows; flower/" in lines[0]
    begun = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "data").glob("*.arrow")}
    main(["prepare", *arguments, "--max-bad-share", "0.5"])
    assert begun.items() <= {f.name: f.stat().st_mtime_ns for f in (tmp_path / "data").glob("*.arrow")}.items()
    said = capsys.readouterr().out
    assert "left out: flower/empty.jpg: the file is empty (0 bytes)" in said and "converted: 1 images (CMYK)" in said
    dataset = StoreDataset(str(tmp_path / "data"))
    left_out = dict(dataset.manifest.facts["left_out"])
    for name, (_, reason) in unusable(SIDE).items():
        assert left_out[f"flower/{name}"].startswith(reason), name
    assert left_out["temple/dangling.jpg"] == "cannot be read: No such file or directory"
    assert len(left_out) == len(unusable(SIDE)) + 1 and len(dataset) == 21
    assert dataset.manifest.facts["classes"] == [{"name": "flower", "images": 10}, {"name": "temple", "images": 11}]


def test_a_class_and_a_shard_without_a_usable_image(folder, tmp_path, capsys):
    copy = shutil.copytree(folder / "flower", tmp_path / "source" / "flower")
    (copy.parent / "unicorn").mkdir()
    for i in range(4):
        (copy.parent / "unicorn" / f"{i}.jpg").write_bytes(b"")
    main(["prepare", str(copy.parent), "--out", str(tmp_path / "data"), "--size", "8", "--latents", "pixels", "--shard", "1",
          "--max-bad-share", "0.5"])  # fmt: skip
    assert "class unicorn has no image that can be used" in capsys.readouterr().out
    dataset = StoreDataset(str(tmp_path / "data"))
    assert len(dataset) == 10 and dataset.num_classes == 2 and len(dataset.manifest.shards) == 10
    for file in copy.iterdir():
        file.write_bytes(b"text")
    with pytest.raises(UserError, match="no image can be used; flower/.*: not an image|unicorn/.*: the file is empty"):
        run_job(job(copy.parent, tmp_path / "none", max_bad_share=1))


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="mounts a small disk, which root alone can")
def test_a_full_disk_stops_it_and_a_larger_one_goes_on(folder, whole, tmp_path, monkeypatch, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no mounting here: {mounted.stderr.strip()}")
    try:
        arguments = ["prepare", str(folder), "--out", str(disk / "data"), "--size", str(SIDE), "--latents", "pixels",
                     "--shard", "6", "--batch", "4"]  # fmt: skip
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
            patch.setattr(estimate, "free_bytes", lambda folder: 1 << 40)  # as if others filled it meanwhile
            main(arguments)
        lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
        assert stopped.value.code == 2 and len(lines) == 1 and "No space left on device" in lines[0]
        finished = list((disk / "data").glob("*.arrow"))
        assert finished and not (disk / "data" / "manifest.json").exists()
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        main(arguments)
        assert content(disk / "data") == content(whole)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_is_too_small_is_noticed_early(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(estimate, "free_bytes", lambda folder: 15_000)
    with pytest.raises(UserError, match=r"--out .*data needs .* KB more and has 15 KB free: make room, or name another disk"):
        run_job(job(folder, tmp_path / "data"))
    assert len(list((tmp_path / "data").glob("*.arrow"))) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--size", "0"], "--size must be at least 1, not 0"),
        (["--teachers", "dinov2-bb"], "'dinov2-bb' is not known; did you mean"),
        (["--class-token"], "--class-token needs teachers that have one"),
        (["--max-pixels", "999999999"], "--max-pixels goes up to 178,956,970"),
        (["--max-bad-share", "2"], "--max-bad-share is a share from 0 to 1, not 2"),
        (["--processes", "-1"], "--processes must be 0"),
        (["--dtype", "fp8"], "invalid choice: 'fp8'"),
        (["--vae", "/nowhere/vae", "--size", "32"], "'/nowhere/vae' cannot be had"),
    ],
)
def test_bad_options_are_one_line(folder, tmp_path, capsys, arguments, says):
    latents = [] if "--vae" in arguments else ["--latents", "pixels"]
    with pytest.raises(SystemExit) as stopped:
        main(["prepare", str(folder), "--out", str(tmp_path / "data"), *latents, *arguments])
    lines = [line for line in capsys.readouterr().err.splitlines() if "img/s" not in line and line]
    assert stopped.value.code == 2 and len(lines) == 1 and says in lines[0], lines


def test_places_that_cannot_be_written_are_named(folder, whole, tmp_path):
    with pytest.raises(UserError, match="lies in the source"):
        job(folder, folder / "flower" / "data")
    (tmp_path / "holiday.png").write_bytes(b"x")
    with pytest.raises(UserError, match="holds files that are not of erw prepare: name another --out"):
        run_job(job(folder, tmp_path))
    with pytest.raises(UserError, match="holiday.png is a file: name a folder"):
        run_job(job(folder, tmp_path / "holiday.png"))
    (tmp_path / "half" / ".work").mkdir(parents=True)
    (tmp_path / "half" / ".work" / "job.json").write_text("{")
    with pytest.raises(UserError, match="job.json cannot be read"):
        run_job(job(folder, tmp_path / "half"))


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(spoilt, tmp_path, capsys):
    main(["prepare", str(spoilt), "--out", str(tmp_path / "data"), "--size", "16", "--latents", "pixels", "--dry-run"])
    said = capsys.readouterr().out
    assert "images  30 in 2 classes" in said and "latents 3x16x16 uint8" in said and "images/s, from 30 images on" in said
    assert "left out so far  flower/bomb.png: more than" in said and re.search(r"time    \d+ seconds", said)
    assert not (tmp_path / "data").exists()


def test_the_log_tells_each_start(whole):
    (line,) = [json.loads(line) for line in (whole / "preparing.jsonl").read_text().splitlines()]
    assert line["images"] == 20 and line["images_per_second"] > 0 and line["processes"] == 1 and line["cpu"]
