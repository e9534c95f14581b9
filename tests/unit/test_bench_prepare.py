"""The record of what each part of ``erw prepare`` buys, and the table in the docs."""

import json
from pathlib import Path

from erw.bench import prepare
from erw.bench._section import section

ROOT = Path(__file__).resolve().parents[2]


def test_the_docs_table_is_the_records():
    record = json.loads(prepare.RECORD.read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "prepare.md").read_text(encoding="utf-8")
    assert section(page, "prepare", "docs/prepare.md") == prepare.table(record) + "\n"


def test_each_row_changes_one_thing():
    rows = prepare.ladder(3)
    assert rows[0] == prepare.Setup(rows[0].name) and rows[-1].processes == 3
    changed = [{k for k in vars(a) if vars(a)[k] != vars(b)[k]} - {"name"} for a, b in zip(rows, rows[1:], strict=False)]
    assert changed == [{"batch", "readers"}, {"precision"}, {"channels_last"}, {"processes"}]


def test_a_row_is_measured_by_several_processes_and_says_so(tmp_path):
    prepare.write_images(tmp_path / "images", 4)
    assert prepare.write_vae(tmp_path / "vae", (8, 8, 8, 8)) > 10_000
    setup = prepare.Setup("two", batch=2, precision="bf16", channels_last=True, processes=2)
    assert prepare.measure(setup, tmp_path / "images", tmp_path / "vae", 32, tmp_path / "out") > 0
    assert sorted(f.name for f in (tmp_path / "out").glob("*.arrow")) == ["latents-00000.arrow", "latents-00001.arrow"]
    record = {"images": 4, "size": 32, "parameters": 1e6, "environment": {"device": "x", "cores": 2, "torch": "2"}}
    rows = [{"name": "a", "images_per_second": [1.0, 3.0, 2.0]}, {"name": "b", "images_per_second": [4.0, 4.0, 5.0]}]
    assert "| b | 4 | 4 to 5 | 2.00 | 2.00 |" in prepare.table(record | {"rows": rows})
