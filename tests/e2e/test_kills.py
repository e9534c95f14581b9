"""`python -m erw.bench.survive`, five kills long."""

import json

import pytest
from safetensors.torch import load_file, save_file

from erw.bench import _kills, _lives, _states, survive
from erw.checkpoint import found, sha256

pytestmark = [pytest.mark.slow, pytest.mark.dist]


def test_five_kills_lose_nothing_that_was_saved(tmp_path, monkeypatch):
    # The hand-over and starts, where not every kill tells much, are the hundred's.
    monkeypatch.setattr(survive, "MOMENTS", {"any": 0.5, "save": 0.5})
    record = survive.survive(5, tmp_path / "work", tmp_path / "record.json", seed=1, steps=24)
    assert record["summary"]["kills"] == 5 and record["summary"]["faults"] == 0
    assert set(record["summary"]["case"]) == {"none", "repa", "erw"}
    assert json.loads((tmp_path / "record.json").read_text()) == record
    assert [len(kill["exits"]) for kill in record["kills"]] == [2] * 5


def test_a_state_that_differs_is_found(tmp_path):
    """The comparison can fail: a checkpoint of other bits, whole in itself, under the name of one that is known."""
    case = _kills.Case("none", tmp_path, 8)
    _kills.make_undisturbed([case], tmp_path / "logs")
    first = found(tmp_path / "none" / "undisturbed" / "checkpoints")[0]
    assert _states.of_checkpoint(first) == case.reference[int(first.name)]
    file = first / "ema.safetensors"
    tensors = load_file(file)
    tensors["x_embedder.proj.bias"][0] += 1e-7
    save_file(tensors, file)
    meta = json.loads((first / "meta.json").read_text())
    meta["files"][file.name]["sha256"] = sha256(file)
    (first / "meta.json").write_text(json.dumps(meta))
    (tmp_path / "none" / "run").mkdir()
    (first.parent).rename(tmp_path / "none" / "run" / "checkpoints")
    log = tmp_path / "log"
    log.write_text(f"saved {tmp_path}/none/run/checkpoints/{first.name}")
    kill = case._look("any", [0, 1], [-9, -9], 0.1, _lives.Life([], [log]), 0, 0)
    assert kill.faults == [f"checkpoint {first.name} differs"]
