"""The comparison of stores and the measurement at scale: what they measure is there, and what they say is the record's."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from erw.bench import _store_scale_child, _store_scale_table, _stores_cache, _stores_table, store_scale, stores
from erw.bench._section import section
from erw.bench._stores_base import Reading, candidates
from erw.bench._stores_child import Failed, alone, epoch
from erw.bench._stores_faults import compared, flip
from erw.bench._stores_rows import Rows, wrong

ROOT = Path(__file__).resolve().parents[2]
ROWS = Rows(256, latents=(8, 4, 4), features=(4, 48))


def test_rows_differ_and_depend_on_the_seed_alone():
    rows = Rows(200_000, latents=(8, 32, 32))
    found = rows.columns(100, 600)
    assert found["latents"].shape == (600, 8, 32, 32) and found["latents"].dtype == torch.float16
    assert len(np.unique(found["latents"].view(torch.int16).reshape(600, -1).numpy(), axis=0)) == 600
    assert torch.equal(rows.columns(650, 1)["latents"][0], found["latents"][550]) and found["labels"][550] == 650
    assert not torch.equal(Rows(200_000, seed=1).columns(650, 1)["latents"][0], found["latents"][550])
    assert rows.row_bytes == 8 * 32 * 32 * 2 + 8
    batch = {name: value.clone() for name, value in found.items()} | {"latents": found["latents"].float()}
    batch["latents"][7, 0, 0, 0] += 1
    assert wrong(batch, rows) == [107]


@pytest.mark.parametrize("name", ["erw", "datasets"])
def test_a_store_gives_back_what_was_written(name, tmp_path):
    if name == "datasets":
        pytest.importorskip("datasets", reason="pip install datasets, to compare with it")
    store = candidates()[name]
    store.write(tmp_path / "data", ROWS, 64)
    for order in ("random", "block"):
        reading = Reading(order, 32, 0, 128)
        batches = list(store.batches(store.open(tmp_path / "data", ROWS, reading), ROWS, reading)[0])
        numbers = torch.cat([batch["labels"] for batch in batches]).tolist()
        assert sorted(numbers) == list(range(256)) and numbers != list(range(256)) and len(batches) == 8
        assert batches[0]["latents"].dtype == torch.float32 and batches[0]["features"].dtype == torch.bfloat16
        assert not [number for batch in batches for number in wrong(batch, ROWS)]


def test_an_epoch_is_timed_with_and_without_the_page_cache(tmp_path):
    store = candidates()["erw"]
    store.write(tmp_path / "data", ROWS, 64)
    cold = epoch(store, tmp_path / "data", ROWS, Reading("block", 32, 0, 128), cold=True)
    warm = epoch(store, tmp_path / "data", ROWS, Reading("block", 32, 0, 128), cold=False)
    assert warm["in_memory_before"] == 1.0 and cold["in_memory_before"] < 0.01
    assert cold["rows_per_second"] == pytest.approx(256 / cold["seconds"]) and warm["rows_per_second"] > 0


def test_what_is_in_memory_is_asked_of_the_kernel(tmp_path):
    (tmp_path / "a").write_bytes(bytes(1 << 20))
    (tmp_path / "b").write_bytes(bytes(1 << 20))
    assert _stores_cache.size_of(tmp_path) == 2 << 20 and _stores_cache.fill(tmp_path) == 1.0
    assert _stores_cache.empty(tmp_path) == 0.0
    assert _stores_cache.fill([tmp_path / "b"]) == 1.0 and _stores_cache.resident(tmp_path) == 0.5


def test_a_process_that_fails_or_dies_says_how():
    import os

    assert alone(max, 3, 4) == 4
    with pytest.raises(Failed, match="^ZeroDivisionError: .*by zero$"):
        alone(divmod, 1, 0)
    with pytest.raises(Failed, match="^crash: exit code 7$"):
        alone(os._exit, 7)


def test_a_resumed_epoch_is_compared_with_the_rest():
    rest = [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert compared([rest], rest) == "yes"
    assert compared([[[4, 3, 2, 1], [5, 6, 7, 8]]], rest) == "same rows, other batches"
    assert compared([[[1, 3], [5, 6]], [[2, 4], [8, 7]]], rest) == "yes"
    assert compared([[[1, 2], [3, 4]], [[5, 6], [7, 8]]], rest) == "same rows, other batches"
    assert compared([[[1, 2, 3, 9], [5, 6, 7, 7]]], rest) == "no: 2 rows repeated, 2 left out of 8"


def test_a_flipped_bit_lies_within_a_row(tmp_path):
    from erw.bench._stores_faults import SMALL

    store = candidates()["erw"]
    store.write(tmp_path / "data", SMALL, 128)
    file = flip(tmp_path / "data")
    assert file.name == "latents-00007.arrow"
    with pytest.raises(Exception, match=f"{file.name} is damaged in column latents, row 104,"):
        store.open(tmp_path / "data", SMALL, Reading("block", 64, 0, 512)).verify()


def test_a_missing_library_is_one_line(monkeypatch, capsys, tmp_path):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "litdata" else real(name))
    with pytest.raises(SystemExit) as caught:
        stores.main(["--work", str(tmp_path), "--stores", "erw,litdata"])
    said = capsys.readouterr().err
    assert caught.value.code == 2 and said.count("\n") == 1 and "not installed: litdata: pip install litdata" in said


def test_a_disk_without_room_is_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10**9}))
    for main in (store_scale.main, stores.main):
        with pytest.raises(SystemExit) as caught:
            main(["--work", str(tmp_path)] + ["--stores", "erw"] * (main is stores.main) + ["--rows", str(2**21)])
        said = capsys.readouterr().err
        assert caught.value.code == 2 and said.count("\n") == 1 and "has 1.0 GB free, " in said


def test_requirements_that_the_installed_versions_do_not_meet_are_named(monkeypatch):
    monkeypatch.setattr(
        "importlib.metadata.requires", lambda name: ["numpy<2", "torch>=2", "nothing-such", "numpy<1; extra == 'x'"]
    )
    assert stores.conflicts("it") == [f"numpy<2 (here {np.__version__})"]


def test_the_scale_measurement_on_few_rows(monkeypatch, tmp_path):
    need = {"short": "8 of them", "source": "Made up.", "images_per_second": {"moments": 1000.0, "features": 500.0}}
    monkeypatch.setattr(store_scale, "needs", lambda: [need])
    monkeypatch.setattr(_store_scale_child, "START", "forkserver")  # spawned ranks take seconds to import torch
    page = tmp_path / "page.md"
    page.write_text("<!-- store-scale -->\n<!-- /store-scale -->\n")
    store_scale.main(["--work", str(tmp_path), "--rows", "2000", "--feature-rows", "0", "--processes", "1", "--workers", "0",
                      "--out", str(tmp_path / "r.json"), "--write", str(page)])  # fmt: skip
    facts = json.loads((tmp_path / "r.json").read_text())["stores"]["moments"]
    assert facts["rows"] == 2000 and facts["write"]["shards"] == 1 and facts["write"]["bytes"] > 2000 * 16384
    assert [(cell["ranks"], cell["warm"]) for cell in facts["speed"]] == [(1, False), (2, False), (1, True), (2, True)]
    assert all(cell["rows"] >= 1900 and cell["rows_per_second"] > 0 and cell["rank"]["uss"] > 0 for cell in facts["speed"])
    assert "8 of them: 1,000 rows/s of moments (16 MB/s). Made up." in page.read_text()
    assert not list(tmp_path.glob("scale-*"))


@pytest.mark.parametrize(
    ("record", "name", "table"),
    [(stores.RECORD, "stores", _stores_table.table), (store_scale.RECORD, "store-scale", _store_scale_table.table)],
)
def test_the_docs_tables_are_the_records(record, name, table):
    if not record.exists():
        pytest.skip(f"not measured yet: bench/results/{record.name} is missing")
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    assert section(page, name, "docs/data.md") == table(json.loads(record.read_text(encoding="utf-8"))) + "\n"


def test_a_store_that_failed_has_a_line_too():
    speeds = {"rows_per_second": [2.0, 1.0, 4.0], "in_memory_before": [0.0] * 3}
    cells = {_stores_table.cell_name(*cell[:3]): speeds for cell in _stores_table.CELLS[2:]}
    good = {"cells": cells, "memory": {"uss": 5.0, "pss": 6.0}, "write": {"seconds": 1.0, "bytes": 2e9, "files": 3}}
    bad = {"failed": "crash: exit code -11"}
    faults = {"resume": "yes", "resume_other_ranks": "no: ...", "flipped_bit": "error that names the file: x | y"}
    about = {"version": "a 1", "conflicts": [], "shuffle": "some", "storage": "none", "faults": faults}
    record = {
        "rounds": 3, "shard_bytes": 1 << 20, "stores": {"a": about}, "opening": {},
        "shapes": {"moments": {"rows": 1024, "row_bytes": 10**6, "stores": {"a": good, "b": bad}}},
        "environment": {"device": "x", "cores": 2, "torch": "2"},
    }  # fmt: skip
    text = _stores_table.table(record)
    assert "| a | - | - | 2 (1 to 4) | 2 (1 to 4) | 2 (1 to 4) | 2 | 5 (6) | 1.0 s | 2.00 |" in text
    assert "| b | crash: exit code -11 |" in text
    assert "| a | a 1 | nothing | some | yes | no: ... | error that names the file | none |" in text
