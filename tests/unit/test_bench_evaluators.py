"""The comparison of the libraries that compute FID: its record, and the table in the docs."""

import json
from pathlib import Path

from erw.bench import evaluators
from erw.bench._section import section

ROOT = Path(__file__).resolve().parents[2]


def test_the_docs_table_is_the_records():
    record = json.loads(evaluators.RECORD.read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    assert section(page, "evaluators", "docs/evaluation.md") == evaluators.table(record) + "\n"


def test_the_record_shows_one_graph_and_unlike_resizes():
    """What the docs say of it: on what torch-fidelity shows them the networks agree, on what they make of an image not."""
    rows = json.loads(evaluators.RECORD.read_text(encoding="utf-8"))["rows"]
    assert {row["status"] for row in rows} == {"measured"}
    same = [
        row["largest_difference"] for row in rows if row["images"] == "torch-fidelity's" or row["library"] == "torch-fidelity"
    ]
    others = [row["largest_difference"] for row in rows if row["setting"] in ("legacy_pytorch", "clean")]
    others += [row["largest_difference"] for row in rows if row["setting"] == "default" and row["library"] == "torchmetrics"
               and row["side"] != 299]  # fmt: skip
    assert len(same) == 9 and max(same) < 1e-3 < 0.1 < min(others)


def test_a_library_that_is_missing_is_said(monkeypatch):
    """With the mean of an image for a network."""

    def missing(file):
        raise ImportError("no", name="cleanfid")

    def means(file):
        return lambda pixels: pixels.float().mean(dim=(2, 3))

    monkeypatch.setattr(evaluators, "random_weights", lambda pixels: {})
    monkeypatch.setattr(evaluators, "_torch_fidelity", means)
    other = ("torchmetrics", "default", "brighter", lambda file: lambda pixels: means(file)(pixels) + 3)
    rows = (("torch-fidelity", "default", "its own", means), other, ("clean-fid", "clean", "anything", missing))
    monkeypatch.setattr(evaluators, "ROWS", rows)
    record = evaluators.measure(count=6, sizes=(64,))
    assert [row["status"] for row in record["rows"]] == ["measured", "measured", "not installed (cleanfid)"]
    assert [row["largest_difference"] > 0 for row in record["rows"][:2]] == [False, True]
    table = evaluators.table(record)
    assert "| not installed (cleanfid) |  |" in table and "| torch-fidelity | default | its own | 64 | 0 sd |" in table
