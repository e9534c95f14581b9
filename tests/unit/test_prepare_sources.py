"""Folders, archives and tables: the same images under the same names and labels, and every fault named."""

import io
import json
import os
import pickle
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest

from erw.errors import UserError
from erw.prepare.listing import Source
from erw.prepare.sources import open_source
from photographs import crop, encoded, write_classes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six crops of a flower and six of a temple."""
    return write_classes(tmp_path_factory.mktemp("folder"), 6)


def tar(path: Path, folder: Path, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        archive.add(folder, arcname=".")
    return path


def zipped(path: Path, folder: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*"), reverse=True):
            archive.write(file, prefix + str(file.relative_to(folder)))
    return path


def same_images(source: Source, folder: Path, prefix: str = "") -> None:
    """``source`` holds what the folder does, in its order, also after it went to another process."""
    listing, expected = source.listing, sorted(str(f.relative_to(folder)) for f in folder.rglob("*.jpg"))
    assert listing.classes == ["flower", "temple"] and listing.names == [prefix + name for name in expected]
    assert listing.labels.tolist() == [0] * 6 + [1] * 6 and not listing.left_out
    travelled = pickle.loads(pickle.dumps(source))
    for number in (0, 11, 5):
        assert travelled.read(number) == (folder / expected[number]).read_bytes() == source.read(number)


def test_a_folder_by_class(folder):
    source = open_source(folder)
    same_images(source, folder)
    assert source.listing.sizes.tolist() == [(folder / name).stat().st_size for name in source.listing.names]


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz", "w:bz2"])
def test_a_tar(folder, tmp_path, mode):
    source = open_source(tar(tmp_path / "images.anything", folder, mode))
    same_images(source, folder)
    assert source.compressed == (mode != "w")
    if source.compressed:
        plain = tmp_path / "plain"
        with plain.open("wb") as file:
            source.plain(file)
        assert tarfile.is_tarfile(plain)
        same_images(source.moved(plain), folder)


def test_a_zip(folder, tmp_path):
    same_images(open_source(zipped(tmp_path / "images.zip", folder)), folder)


def test_a_tar_of_tars_as_imagenet_comes(folder, tmp_path):
    with tarfile.open(tmp_path / "all.tar", "w") as outer:
        for name in ("flower", "temple"):
            with tarfile.open(tmp_path / f"{name}.tar", "w") as inner:
                for file in sorted((folder / name).iterdir()):
                    inner.add(file, arcname=file.name)
            outer.add(tmp_path / f"{name}.tar", arcname=f"{name}.tar")
    same_images(open_source(tmp_path / "all.tar"), folder)


def test_one_split_of_several(folder, tmp_path):
    archive = zipped(tmp_path / "both.zip", folder, "train/")
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("test/temple/x.jpg", b"x")
    same_images(open_source(archive, "train"), folder, "train/")
    with pytest.raises(UserError, match="both.zip holds test, train, which are splits, not classes: take one with --split"):
        open_source(archive)
    with pytest.raises(UserError, match="--split val: .*both.zip has no images there; it holds test, train"):
        open_source(archive, "val")


def test_a_folder_without_classes_is_one_class(folder):
    listing = open_source(folder / "flower").listing
    assert listing.classes == ["images"] and listing.labels.tolist() == [0] * 6


def test_other_files_are_listed_and_litter_is_not(folder, tmp_path):
    archive = zipped(tmp_path / "images.zip", folder)
    with zipfile.ZipFile(archive, "a") as file:
        for name in ("flower/notes.txt", "LICENSE", "top.png", "__MACOSX/flower/x.jpg", "flower/.DS_Store"):
            file.writestr(name, b"x")
    listing = open_source(archive).listing
    assert listing.others == ["LICENSE", "flower/notes.txt"] and len(listing.names) == 12
    assert listing.left_out == [("top.png", "lies in no class folder")]


def test_entries_that_climb_out_are_left_out_by_name(folder, tmp_path):
    bad = ["../evil.jpg", "/etc/evil.jpg", "flower/../../evil.jpg"]
    archive = zipped(tmp_path / "images.zip", folder)
    with zipfile.ZipFile(archive, "a") as file:
        for name in bad:
            file.writestr(name, b"x")
    with tarfile.open(tar(tmp_path / "images.tar", folder), "a") as file:
        for name in bad:
            entry = tarfile.TarInfo(name)
            entry.size = 1
            file.addfile(entry, io.BytesIO(b"x"))
        link = tarfile.TarInfo("flower/link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
    for name in ("images.zip", "images.tar"):
        listing = open_source(tmp_path / name).listing
        assert len(listing.names) == 12 and listing.classes == ["flower", "temple"]
        assert listing.left_out[:3] == [(entry, "the entry climbs out of the archive") for entry in bad]
    assert listing.left_out[3:] == [("flower/link.jpg", "a link or device in the archive, not a file")]
    assert not (tmp_path.parent / "evil.jpg").exists()


def test_the_digest_sees_names_labels_and_sizes(folder, tmp_path):
    before = open_source(folder).listing.digest
    assert open_source(write_classes(tmp_path / "same", 6)).listing.digest == before
    (tmp_path / "same" / "flower" / "000.jpg").rename(tmp_path / "same" / "flower" / "zzz.jpg")
    assert open_source(tmp_path / "same").listing.digest != before
    assert open_source(write_classes(tmp_path / "other", 6, width=50)).listing.digest != before


def test_what_cannot_be_read_is_an_oserror_by_number(folder, tmp_path):
    write_classes(tmp_path / "links", 1)
    (tmp_path / "links" / "flower" / "dangling.jpg").symlink_to(tmp_path / "nowhere")
    source = open_source(tmp_path / "links")
    with pytest.raises(OSError, match="No such file"):
        source.read(source.listing.names.index("flower/dangling.jpg"))
    archive = zipped(tmp_path / "images.zip", folder)
    data = bytearray(archive.read_bytes())
    data[len(data) // 3] ^= 255
    archive.write_bytes(data)
    source, failed = open_source(archive), []
    for number in range(12):
        try:
            source.read(number)
        except OSError as error:
            failed.append(str(error))
    assert len(failed) == 1 and "damaged in the archive: Bad CRC-32" in failed[0]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="becomes another user, which root alone can")
def test_a_file_without_permission_is_an_oserror():
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        folder = write_classes(Path(name) / "source", 1)
        (folder / "flower" / "000.jpg").chmod(0)
        source = open_source(folder)
        os.seteuid(65534)
        try:
            with pytest.raises(PermissionError):
                source.read(0)
            assert source.read(1)
        finally:
            os.seteuid(0)


def spoil(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:700])
    return path


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda f, t: t / "nowhere", "nowhere' does not exist: name a folder by class"),
        (lambda f, t: t, "holds no images"),
        (lambda f, t: spoil(zipped(t / "x.zip", f)), "x.zip is not a whole zip .*: download or write it again"),
        (lambda f, t: spoil(tar(t / "x.tar", f)), "x.tar is not a whole tar .*: download or write it again"),
        (lambda f, t: spoil(tar(t / "x.tar.xz", f, "w:xz")), "x.tar.xz is not a whole tar .*: download or write it again"),
        (lambda f, t: spoil(parquet(t / "x.parquet", f)), "x.parquet is not a whole parquet file"),
        (lambda f, t: Path(__file__), "is neither a folder, a zip, a tar .* nor parquet"),
    ],
)
def test_faults_of_the_source_are_named(folder, tmp_path, make, says):
    with pytest.raises(UserError, match=says):
        open_source(make(folder, tmp_path))


def test_an_empty_class_is_named(tmp_path):
    write_classes(tmp_path, 1)
    (tmp_path / "unicorn").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="no image in class folders notes, unicorn: fill, or remove"):
        open_source(tmp_path)


def test_a_link_back_is_named(tmp_path):
    write_classes(tmp_path, 1)
    (tmp_path / "flower" / "again").symlink_to(tmp_path)
    with pytest.raises(UserError, match="again is a link back to"):
        open_source(tmp_path)


# ---- tables --------------------------------------------------------------------------------------------------------------


def rows_of(folder: Path, prefix: str = "") -> list[tuple[dict, int]]:
    """The folder's images as Hugging Face's library stores them, the classes in turn."""
    files = sorted(folder.rglob("*.jpg"), key=lambda f: (f.name, f.parent.name))
    return [({"bytes": f.read_bytes(), "path": f.name}, int(f.parent.name == "temple")) for f in files]


def schema(named: bool):
    import pyarrow as pa

    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    info = {
        "info": {"features": {"image": {"_type": "Image"}, "label": {"names": ["flower", "temple"], "_type": "ClassLabel"}}}
    }
    meta = {"huggingface": json.dumps(info)} if named else None
    return pa.schema([("image", image), ("label", pa.int64())], metadata=meta)


def parquet(path: Path, folder: Path, named: bool = True, group: int = 5) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    images, labels = zip(*rows_of(folder), strict=True)
    table = pa.table([pa.array(images, schema(named).field(0).type), pa.array(labels)], schema=schema(named))
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group)
    return path


def test_parquet_as_the_hub_holds_it(folder, tmp_path):
    for number in range(2):
        parquet(tmp_path / "data" / f"train-0000{number}-of-00002.parquet", folder)
    parquet(tmp_path / "data" / "validation-00000-of-00001.parquet", folder)
    with pytest.raises(UserError, match="has the splits train, validation: take one with --split"):
        open_source(tmp_path)
    with pytest.raises(UserError, match="--split test is not in .*; it has train, validation"):
        open_source(tmp_path, "test")
    source = pickle.loads(pickle.dumps(open_source(tmp_path, "train")))
    listing = source.listing
    assert listing.classes == ["flower", "temple"] and len(listing.names) == 24 and listing.blocks == [5, 5, 2] * 2
    assert listing.names[13] == "data/train-00001-of-00002.parquet:000001"
    assert [source.read(i) for i in range(24)] == [row["bytes"] for row, _ in rows_of(folder)] * 2
    assert listing.labels.tolist() == [0, 1] * 12


def test_arrow_as_save_to_disk_writes_it(folder, tmp_path):
    import pyarrow as pa

    images, labels = zip(*rows_of(folder), strict=True)
    table = pa.table([pa.array(images, schema(True).field(0).type), pa.array(labels)], schema=schema(True))
    (tmp_path / "train").mkdir()
    with (
        pa.OSFile(str(tmp_path / "train" / "data-00000-of-00001.arrow"), "wb") as file,
        pa.ipc.new_stream(file, table.schema) as out,
    ):
        out.write_table(table, max_chunksize=7)
    source = open_source(tmp_path, "train")
    assert source.listing.blocks == [7, 5] and source.listing.classes == ["flower", "temple"]
    assert source.read(8) == rows_of(folder)[8][0]["bytes"]


def test_labels_of_a_table(folder, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = [encoded(crop(0, 8, 8), "PNG")] * 3

    def written(**columns) -> Path:
        pq.write_table(pa.table(columns), tmp_path / "x.parquet")
        return tmp_path / "x.parquet"

    listing = open_source(written(img=data, label=["dog", "cat", "dog"])).listing
    assert listing.classes == ["cat", "dog"] and listing.labels.tolist() == [1, 0, 1]
    assert open_source(written(img=data, label=[2, 0, 2])).listing.classes == ["0", "1", "2"]
    assert open_source(written(img=data)).listing.classes == ["images"]
    with pytest.raises(UserError, match="labels in column label run from -1 to 2"):
        open_source(written(img=data, label=[-1, 0, 2]))
    with pytest.raises(UserError, match="rows without a label"):
        open_source(written(img=data, label=["dog", None, "dog"]))
    with pytest.raises(UserError, match=r"x.parquet has no column of images \(bytes\); its columns: url, label"):
        open_source(written(url=["a", "b", "c"], label=[0, 1, 2]))
    source = open_source(written(image=[{"bytes": None, "path": "a.jpg"}], label=[0]))
    with pytest.raises(OSError, match="holds no bytes"):
        source.read(0)
