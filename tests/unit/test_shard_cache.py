"""The cache of shards while several fetch at once."""

import threading

from erw.data.store.cache import ShardCache


def zeros(size: int):
    """A fetch of so many bytes."""
    return lambda path: path.write_bytes(bytes(size))


def test_a_fetch_that_ends_while_another_makes_room_is_counted(tmp_path, monkeypatch):
    """Listed by its partial name, it would have its final one a moment later, and be counted by neither."""
    cache, begun, may_end = ShardCache(tmp_path, 150), threading.Event(), threading.Event()
    cache.get("old", 50, zeros(50))
    remove_left = cache._remove_left

    def fetch(path):
        begun.set()
        may_end.wait(10)
        zeros(100)(path)

    def while_the_other_ends(partial):
        may_end.set()
        other.join(0.3)
        return remove_left(partial)

    other = threading.Thread(target=cache.get, args=("large", 100, fetch))
    other.start()
    assert begun.wait(10)
    monkeypatch.setattr(cache, "_remove_left", while_the_other_ends)
    cache.get("new", 50, zeros(50))
    other.join()
    assert {file.name for file in tmp_path.iterdir() if file.is_file()} == {"large", "new"}
