"""The store: what is written is what is read, and what was changed on the disk is found, named, and never skipped."""

import json
import re
import resource
import shutil

import numpy as np
import pytest
import torch

from erw.data import DataConfig, open_dataset
from erw.data.store import Column, StoreDataset, read_manifest, rows_per_shard, seal, write_shard
from erw.errors import UserError
from stores import SIDE, flip, values, write_store


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """200 rows in ten shards; not to be changed."""
    folder = tmp_path_factory.mktemp("store") / "data"
    write_store(folder)
    return folder


@pytest.fixture
def copied(whole, tmp_path):
    """The same, to be damaged."""
    return shutil.copytree(whole, tmp_path / "data")


def test_rows_come_back_as_they_were(whole):
    dataset, rows = StoreDataset(str(whole)), np.random.default_rng(0).integers(0, 200, 70)
    wanted = values(0, 200)
    batch = dataset.fetch(rows)
    assert batch["latents"].dtype == torch.float32 and torch.equal(batch["latents"], wanted["latents"][rows].float())
    assert batch["labels"].dtype == torch.int64 and torch.equal(batch["labels"], wanted["labels"][rows])
    assert torch.equal(dataset.features("t", rows), wanted["t"][rows])
    assert torch.equal(dataset.class_tokens("t", rows), wanted["t.cls"][rows])
    assert torch.equal(dataset.images(rows), wanted["images"][rows])
    assert dataset.texts("names", rows) == [f"image {row}" for row in rows]


def test_it_says_what_it_holds(whole):
    dataset = open_dataset(DataConfig(name="store", path=str(whole), window=3))
    assert (len(dataset), dataset.num_classes, dataset.channels, dataset.size) == (200, 10, 8, SIDE)
    assert dataset.has_images and dataset.cached["t"].flops == 7 and dataset.cached["t"].spec.width == 96
    assert dataset.blocks.shard_rows == (20,) * 10 and dataset.blocks.window == 3
    assert dataset.manifest.facts == {"vae": "none"}
    dataset.verify()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.uint8, torch.int32])
def test_every_dtype_keeps_its_bits(dtype, tmp_path):
    bits = torch.randint(0, 256, (6, 300 * dtype.itemsize), dtype=torch.uint8)
    wide, narrow = bits.view(dtype), bits[:, : 4 * dtype.itemsize].contiguous().view(dtype)
    latents = torch.zeros(6, 1, 2, 2)
    shard = write_shard(tmp_path, 0, {"latents": latents, "labels": torch.zeros(6).long(), "wide": wide, "narrow": narrow})
    seal(tmp_path, [shard], 1)
    dataset, rows = StoreDataset(str(tmp_path)), np.array([5, 0, 3])
    for name, value in (("wide", wide), ("narrow", narrow)):
        found = dataset.read(name, rows)
        assert found.dtype == dtype and torch.equal(found.view(torch.uint8), value[rows].contiguous().view(torch.uint8))


def test_any_arrow_reader_opens_the_files(whole):
    import pyarrow as pa

    with pa.OSFile(str(whole / "latents-00003.arrow")) as file:
        table = pa.ipc.open_file(file).read_all()
    assert table.column_names == ["latents", "latents.digest", "labels", "names"]
    latents = np.stack(table["latents"].to_numpy()).reshape(20, 8, SIDE, SIDE)
    assert np.array_equal(latents, values(60, 20)["latents"].numpy())
    assert table["labels"].to_pylist() == values(60, 20)["labels"].tolist()


def test_hugging_face_datasets_opens_them_too(whole, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets", reason="pip install datasets, to see it open a shard")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    files = str(whole / "latents-00000.arrow")
    rows = datasets.load_dataset("arrow", data_files=files, split="train", cache_dir=str(tmp_path))
    assert rows[7]["names"] == "image 7" and rows[7]["labels"] == 7


def test_the_same_rows_give_the_same_bytes(whole, tmp_path):
    write_store(tmp_path / "again")
    names = sorted(file.name for file in whole.iterdir())
    assert len(names) == 31 and names == sorted(file.name for file in (tmp_path / "again").iterdir())
    assert all((whole / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in names)


def test_checksums_are_those_of_the_files(whole):
    import hashlib

    for shard in read_manifest(whole).shards:
        for group, entry in shard.files.items():
            content = (whole / f"{group}-{shard.index:05d}.arrow").read_bytes()
            assert (entry.bytes, entry.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_a_shard_is_about_as_large_as_asked():
    moments = Column(name="latents", dtype="float16", shape=(8, 32, 32))
    features = Column(name="t", dtype="bfloat16", shape=(256, 768), group="t")
    assert rows_per_shard([moments]) == 8192
    assert rows_per_shard([moments, features]) == 256
    assert rows_per_shard([moments, features], target=1) == 64


def offset_of(file, content: bytes) -> int:
    found = file.read_bytes().find(content)
    assert found > 0
    return found


def said(read) -> str:
    with pytest.raises(UserError) as caught:
        read()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_flipped_bit_in_a_row_is_named(copied):
    file, row = copied / "latents-00002.arrow", values(45, 1)["latents"].numpy().tobytes()
    start = offset_of(file, row)
    flip(file, start + 77, bit=5)
    dataset = StoreDataset(str(copied))
    dataset.fetch(np.array([44, 46]))
    line = said(lambda: dataset.fetch(np.array([44, 45, 46])))
    assert line == (f"{file} is damaged in column latents, row 5, bytes {start} to {start + len(row) - 1}: wrong checksum;"
                    " restore the file from a copy, or prepare the dataset again")  # fmt: skip
    assert said(StoreDataset(str(copied)).verify) == line


def test_a_flipped_bit_in_features_is_named(copied):
    file = copied / "t-00009.arrow"
    flip(file, offset_of(file, values(199, 1)["t"].view(torch.uint8).numpy().tobytes()))
    line = said(lambda: StoreDataset(str(copied)).features("t", np.array([199])))
    assert f"{file} is damaged in column t, row 19, bytes " in line


@pytest.mark.parametrize("what", ["labels", "latents.digest"])
def test_a_flipped_bit_outside_the_rows_is_named(copied, what):
    import pyarrow as pa

    file = copied / "latents-00000.arrow"
    with pa.OSFile(str(file)) as source:
        column = pa.ipc.open_file(source).read_all()[what].chunk(0)
    place = offset_of(file, bytes(column.buffers()[1])[: 20 * 8]) + 41
    flip(file, place)
    line = said(lambda: StoreDataset(str(copied)).fetch(np.array([3])))
    found = re.search(rf"^{file} is damaged outside its rows, bytes (\d+) to (\d+): wrong checksum; ", line)
    assert int(found[1]) <= place <= int(found[2])


def test_no_flipped_bit_passes(copied):
    """One bit at a time, all over a file: headers, rows, digests, padding, footer."""
    file = copied / "latents-00000.arrow"
    content = file.read_bytes()
    assert len(content) < 8000
    for offset in range(0, len(content), 19):
        flip(file, offset, bit=offset % 8)
        line = said(lambda: StoreDataset(str(copied)).fetch(np.arange(20)))
        first, last = map(int, re.search(r"bytes (\d+) to (\d+)", line).groups())
        assert str(file) in line and first <= offset <= last
        file.write_bytes(content)


@pytest.mark.parametrize("left", [0, 100, 3000, -1])
def test_a_truncated_shard_is_named_with_its_sizes(copied, left):
    file = copied / "latents-00004.arrow"
    size = file.stat().st_size
    with file.open("r+b") as opened:
        opened.truncate(left % size)
    line = said(lambda: StoreDataset(str(copied)).fetch(np.array([81])))
    assert line.startswith(f"{file} is truncated: {left % size} bytes, the manifest says {size}")


def test_a_shard_that_shrinks_while_it_is_open_is_named(copied):
    file, dataset = copied / "latents-00004.arrow", StoreDataset(str(copied))
    dataset.fetch(np.array([80]))
    with file.open("r+b") as opened:
        opened.truncate(2000)
    line = said(lambda: dataset.fetch(np.array([99])))
    assert line.startswith(f"{file} is truncated in column latents, row 19, byte ")


def test_a_missing_shard_is_named(copied):
    (copied / "t-00001.arrow").unlink()
    dataset = StoreDataset(str(copied))
    dataset.fetch(np.array([25]))
    assert said(lambda: dataset.features("t", np.array([25]))).startswith(f"{copied / 't-00001.arrow'} is missing; ")


def test_a_file_of_zeros_is_named(copied):
    file = copied / "latents-00001.arrow"
    file.write_bytes(b"\0" * file.stat().st_size)
    assert f"{file} is damaged outside its rows, bytes 0 to " in said(lambda: StoreDataset(str(copied)).fetch(np.array([25])))


def test_shards_that_were_swapped_are_found(copied):
    one, two = copied / "latents-00001.arrow", copied / "latents-00002.arrow"
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)
    assert f"{one} is damaged outside its rows" in said(lambda: StoreDataset(str(copied)).fetch(np.array([25])))


def with_manifest(folder, change) -> str:
    file = folder / "manifest.json"
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))
    return said(lambda: StoreDataset(str(folder)))


def test_a_manifest_of_a_newer_version_asks_for_an_update(copied):
    line = with_manifest(copied, lambda data: data.update(version=9, something="new"))
    assert line == f"{copied / 'manifest.json'} is of version 9, this erw reads up to 1: update erw"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda d: d.pop("format"), "is not the manifest of a prepared dataset (KeyError('format'))"),
        (lambda d: d.update(format="other"), "is not the manifest of a prepared dataset (ValueError(\"format 'other'\"))"),
        (lambda d: d.pop("num_classes"), 'is not a whole manifest (missing value for field "num_classes")'),
        (lambda d: d.update(rows=199), "is at odds with itself (199 rows, its shards have 200)"),
        (lambda d: d["shards"][1]["files"].pop("t"), "is at odds with itself (shard 1 has files of latents, images"),
        (lambda d: d["columns"].pop(1), "is at odds with itself (no column labels)"),
        (lambda d: d["columns"][0].update(dtype="float12"), "column latents cannot hold (8, 4, 4) of float12"),
        (lambda d: d["columns"][0].update(shape=[8, 4, 5]), "latents of shape (8, 4, 5) are not (channels, side, side)"),
        (lambda d: d["teachers"][0].update(width=7), "is at odds with itself (teacher t needs a column t of (4, 7))"),
    ],
)
def test_a_broken_manifest_is_named(copied, change, why):
    line = with_manifest(copied, change)
    assert why in line and str(copied) in line


def test_a_manifest_cut_short_is_named(copied):
    file = copied / "manifest.json"
    file.write_bytes(file.read_bytes()[:500])
    assert f"{file} is not the manifest of a prepared dataset (JSONDecodeError" in said(lambda: StoreDataset(str(copied)))


def test_a_folder_without_manifest_says_what_that_means(copied):
    (copied / "manifest.json").unlink()
    assert "is not a prepared dataset (was erw prepare interrupted?" in said(lambda: StoreDataset(str(copied)))
    assert "is not a folder: name one that erw prepare made" in said(lambda: StoreDataset(str(copied / "nowhere")))


def test_a_full_disk_is_said_and_leaves_no_half_file(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    write_shard(tmp_path, 0, values(0, 4))
    before = sorted(tmp_path.iterdir())
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        assert said(lambda: write_shard(tmp_path, 1, values(0, 20))) == f"{tmp_path} cannot take shard 1: File too large"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(tmp_path.iterdir()) == before


def test_shards_that_do_not_fit_together_are_refused(tmp_path):
    one = write_shard(tmp_path, 0, {"latents": torch.zeros(2, 1, 2, 2), "labels": torch.zeros(2).long()})
    two = write_shard(tmp_path, 1, {"latents": torch.zeros(2, 1, 3, 3), "labels": torch.zeros(2).long()})
    with pytest.raises(ValueError, match="shard 1 has other columns than shard 0"):
        seal(tmp_path, [one, two], 1)
    with pytest.raises(ValueError, match="columns of 2, 3 rows|columns of 3, 2 rows"):
        write_shard(tmp_path, 2, {"latents": torch.zeros(2, 1, 2, 2), "labels": torch.zeros(3).long()})
    for name in ("a/b", "", "../up", "x.digest"):
        with pytest.raises(UserError, match="cannot name a column"):
            write_shard(tmp_path, 2, {name: torch.zeros(2, 1)})
