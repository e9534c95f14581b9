"""The cache of trained networks: built once, checked when read, kept whole."""

import threading
import time

import pytest
import torch

from erw import cache
from erw.cache import cached_weights, reproducible
from erw.errors import UserError


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ERW_CACHE", str(tmp_path))
    return tmp_path


class _Builder:
    """A build that counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        weights = {"w": torch.arange(6.0).view(2, 3).T, "n": torch.tensor(3), "h": torch.ones(2, dtype=torch.bfloat16)}
        return weights, {"seconds": 0.1, "flops": 7}


def test_cache_builds_once_and_gives_the_same_back(own_cache):
    build = _Builder()
    first, facts = cached_weights("net", {"lr": 0.1}, build)
    second, _ = cached_weights("net", {"lr": 0.1}, build)
    assert build.calls == 1
    assert facts == {"seconds": 0.1, "flops": 7}
    for name, expected in build()[0].items():
        assert first[name].dtype == expected.dtype
        assert torch.equal(first[name], expected) and torch.equal(second[name], expected)


def test_cache_tells_fingerprints_names_and_torch_versions_apart(own_cache, monkeypatch):
    build = _Builder()
    cached_weights("net", {"lr": 0.1}, build)
    cached_weights("net", {"lr": 0.2}, build)
    cached_weights("other", {"lr": 0.1}, build)
    monkeypatch.setattr(torch, "__version__", "0.0.0")
    cached_weights("net", {"lr": 0.1}, build)
    assert build.calls == 4
    assert len(list(own_cache.glob("*.safetensors"))) == 4


def _truncate(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _flip_a_bit(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def _foreign(data: bytes) -> bytes:
    from safetensors.torch import save

    return save({"w": torch.zeros(2)})


def _empty(data: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [_truncate, _flip_a_bit, _foreign, _empty])
def test_cache_rebuilds_a_damaged_file_and_says_so(own_cache, capsys, damage):
    build = _Builder()
    cached_weights("net", {}, build)
    (path,) = own_cache.glob("net-*.safetensors")
    path.write_bytes(damage(path.read_bytes()))
    capsys.readouterr()
    weights, _ = cached_weights("net", {}, build)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and str(path) in lines[0] and "training net again" in lines[0]
    assert build.calls == 2
    assert torch.equal(weights["w"], build()[0]["w"])


@pytest.mark.parametrize("error", [RuntimeError("out of luck"), OSError(5, "out of luck")])
def test_cache_keeps_nothing_of_a_build_that_fails(own_cache, error):
    """Nor does it take the build's errors for its own."""

    def fail():
        raise error

    with pytest.raises(type(error), match="out of luck") as raised:
        cached_weights("net", {}, fail)
    assert raised.value is error
    assert not list(own_cache.glob("net-*.safetensors"))


def test_cache_folder_that_is_a_file(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("ERW_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="set ERW_CACHE"):
        cached_weights("net", {}, _Builder())


def test_cache_file_that_is_a_folder(own_cache):
    cached_weights("net", {}, _Builder())
    (path,) = own_cache.glob("net-*.safetensors")
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="set ERW_CACHE"):
        cached_weights("net", {}, _Builder())


def test_cache_lets_one_of_several_build(own_cache):
    """The lock belongs to the opened file, not to the process, so threads stand for ranks here."""
    build, results = _Builder(), []

    def slowly():
        time.sleep(0.3)
        return build()

    threads = [threading.Thread(target=lambda: results.append(cached_weights("net", {}, slowly))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert build.calls == 1
    assert len(results) == 3


def test_reproducible_restores_state_after_an_error():
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    with pytest.raises(RuntimeError), reproducible(0):
        torch.rand(3)
        raise RuntimeError
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_source_digest_follows_the_source(tmp_path):
    file = tmp_path / "a.py"
    file.write_text("steps = 1")
    before = cache.source_digest(str(file))
    file.write_text("steps = 2")
    assert cache.source_digest(str(file)) != before
