"""A store in object storage, on a real S3 server: each shard fetched once, checked, kept within bounds, shared, retried."""

import contextlib
import itertools
import multiprocessing
import os

import numpy as np
import pytest
import torch

from erw.data.store import StoreDataset, remote
from erw.data.stream import Wanted, stream
from erw.errors import UserError
from s3_server import s3_server
from stores import flip, write_store

pytest.importorskip("s3fs", reason="pip install 'erw[s3]'")
pytest.importorskip("moto", reason="pip install 'erw[dev]'")
SHARDS = 8


@pytest.fixture(scope="module")
def server():
    """A server, and the environment that leads to it."""
    with pytest.MonkeyPatch.context() as patch, s3_server() as running:
        for name, value in running.environment.items():
            patch.setenv(name, value)
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """160 rows in eight shards, with features and images."""
    folder = tmp_path_factory.mktemp("store") / "data"
    write_store(folder, rows=160, shard=20)
    return folder


@pytest.fixture(scope="module")
def uploaded(server, folder):
    """The store in a bucket."""
    return server.upload(folder, "shared", "in/it")


@pytest.fixture
def bucket(server, uploaded):
    """The same; nothing was fetched from it yet."""
    server.gets.clear()
    return uploaded


@pytest.fixture
def own(server, folder, tmp_path):
    """The first two shards' latents as a store, in a folder and a bucket of the test's own."""
    write_store(tmp_path / "own", rows=40, shard=20, columns=("latents", "labels"))
    return tmp_path / "own", server.upload(tmp_path / "own", tmp_path.name.replace("_", "-"), "in/it")


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """No long pauses between tries."""
    monkeypatch.setattr(remote, "PAUSES", (0.01, 0.02, 0.03))


def batches(dataset, count: int, rank: int = 0, ranks: int = 1, workers: int = 0, teachers: tuple[str, ...] = ("t",)):
    """Micro-batches of 8 images of global batches of 16, from the first image on."""
    return itertools.islice(stream(dataset, 3, 0, 16, 8, rank, ranks, workers, wanted=Wanted(teachers)), count)


def test_an_epoch_fetches_each_shard_once_and_gives_the_same_rows(server, bucket, folder, tmp_path):
    dataset = StoreDataset(bucket, 2, str(tmp_path / "cache"))
    for ours, local in zip(batches(dataset, 20), batches(StoreDataset(str(folder), 2), 20), strict=True):
        assert torch.equal(ours.latents, local.latents) and torch.equal(ours.features["t"], local.features["t"])
    wanted = {f"{group}-{n:05d}.arrow": 1 for group in ("latents", "t") for n in range(SHARDS)}
    assert server.fetched() == {"manifest.json": 1} | wanted  # and no image


def test_another_start_takes_what_is_in_the_cache(server, bucket, tmp_path):
    list(batches(StoreDataset(bucket, 2, str(tmp_path)), 20))
    server.gets.clear()
    list(batches(StoreDataset(bucket, 2, str(tmp_path)), 20))
    assert server.fetched() == {"manifest.json": 1}


def _read_as_rank(bucket: str, cache: str, rank: int) -> None:
    torch.set_num_threads(1)
    for _ in batches(StoreDataset(bucket, 2, cache), 10, rank, 2, workers=1):
        pass
    os._exit(0)


def test_ranks_and_their_loader_processes_share_one_cache(server, bucket, tmp_path):
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=_read_as_rank, args=(bucket, str(tmp_path), rank)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
        assert process.exitcode == 0
    fetched = server.fetched()
    assert fetched.pop("manifest.json") == 2
    assert fetched == {f"{group}-{n:05d}.arrow": 1 for group in ("latents", "t") for n in range(SHARDS)}


def held(folder) -> int:
    """Bytes of its files. Listed until two lists are alike: one that is renamed meanwhile would count twice, or be missing."""
    before, now = None, {}
    while now != before:
        before, now = now, {}
        for file in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                now[file.name] = file.stat().st_size if file.is_file() else 0
    return sum(now.values())


def test_the_cache_stays_within_its_bound(server, bucket, folder, tmp_path):
    sizes = [file.stat().st_size for file in folder.glob("latents-*")]
    bound = sum(sorted(sizes)[-3:]) + 100
    dataset = StoreDataset(bucket, 1, str(tmp_path), bound)
    for _ in batches(dataset, 40, teachers=()):
        assert held(tmp_path) <= bound
        # What was deleted to make room and is not read any more is not kept open either, or it would stay on the disk.
        assert len(dataset._files) <= 3 + 3
    fetched = server.fetched()
    assert fetched.pop("manifest.json") == 1 and len(fetched) == SHARDS
    assert SHARDS < sum(fetched.values()) <= 2 * SHARDS  # in two epochs


def test_a_cache_that_cannot_hold_two_windows_is_refused(bucket, tmp_path):
    with pytest.raises(UserError, match=r"--data.cache_gb 1e-05 is less than the .* GB of two windows of shards: raise it"):
        list(batches(StoreDataset(bucket, 4, str(tmp_path), 10_000), 1))


def test_a_server_that_fails_now_and_then_is_asked_again(server, bucket, tmp_path):
    key = bucket.removeprefix("s3://")
    server.failures[f"{key}/latents-00001.arrow"] = 2
    dataset = StoreDataset(bucket, 2, str(tmp_path))
    dataset.fetch(np.arange(20, 40))
    assert server.fetched()["latents-00001.arrow"] == 3


def test_a_server_that_keeps_failing_ends_it_in_one_line(server, bucket, tmp_path):
    server.failures[bucket.removeprefix("s3://") + "/latents-00001.arrow"] = 10**6
    with pytest.raises(UserError) as caught:
        StoreDataset(bucket, 2, str(tmp_path)).fetch(np.array([30]))
    line = str(caught.value)
    assert line.startswith(f"{bucket}/latents-00001.arrow cannot be fetched after 4 tries: ") and "\n" not in line
    assert line.endswith("check the address, the credentials and the network")
    server.failures.clear()


def put(server, file, url: str) -> None:
    name, prefix = url.removeprefix("s3://").split("/", 1)
    server.client().upload_file(str(file), name, f"{prefix}/{file.name}")


def test_a_shard_that_is_damaged_there_is_fetched_again_then_named(server, own, tmp_path):
    folder, url = own
    bad = folder / "latents-00001.arrow"
    flip(bad, bad.stat().st_size // 2)
    put(server, bad, url)
    with pytest.raises(UserError) as caught:
        StoreDataset(url, 2, str(tmp_path / "cache")).fetch(np.array([21]))
    line = str(caught.value)
    assert line.startswith(f"{url}/latents-00001.arrow is damaged in column latents, row ") and "wrong checksum" in line
    assert server.fetched()["latents-00001.arrow"] == 4
    assert not [file for file in (tmp_path / "cache").iterdir() if file.is_file()]


def test_a_shard_that_is_missing_there_is_named_at_once(server, own, tmp_path):
    name, prefix = own[1].removeprefix("s3://").split("/", 1)
    server.client().delete_object(Bucket=name, Key=f"{prefix}/latents-00001.arrow")
    with pytest.raises(UserError, match="/latents-00001.arrow is missing: copy the dataset again"):
        StoreDataset(own[1], 2, str(tmp_path / "cache")).fetch(np.array([30]))


def test_a_wrong_address_is_said(server, tmp_path):
    with pytest.raises(UserError, match="s3://nowhere/x/manifest.json is missing: is --data.path right"):
        StoreDataset("s3://nowhere/x", 2, str(tmp_path))
    with pytest.raises(UserError, match="--data.path nosuch://x/y cannot be read: .*nosuch"):
        StoreDataset("nosuch://x/y", 2, str(tmp_path))


def test_a_store_that_cannot_be_reached_is_one_line(server, tmp_path, monkeypatch):
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(UserError) as caught:
        StoreDataset("s3://some/where", 2, str(tmp_path))
    assert str(caught.value).startswith("s3://some/where/manifest.json cannot be fetched after 4 tries: ")
    assert "\n" not in str(caught.value)
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_dataset_prepared_anew_does_not_meet_the_old_files(server, own, tmp_path):
    folder, url = own
    StoreDataset(url, 2, str(tmp_path / "cache")).fetch(np.array([0]))
    write_store(folder, rows=40, shard=20, columns=("latents", "labels"), vae="another")
    put(server, folder / "manifest.json", url)
    StoreDataset(url, 2, str(tmp_path / "cache")).fetch(np.array([0]))
    assert server.fetched()["latents-00000.arrow"] == 2


def test_what_a_killed_process_left_is_removed(bucket, tmp_path):
    left = tmp_path / ".abc-latents-00000.arrow.5000.partial"
    left.write_bytes(b"x" * 1000)
    StoreDataset(bucket, 2, str(tmp_path)).fetch(np.array([0]))
    assert not left.exists()


def test_a_cache_that_cannot_be_written_is_said(bucket, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--data.cache .*/file/cache: Not a directory: name a folder with room"):
        StoreDataset(bucket, 2, str(tmp_path / "file" / "cache"))
