"""Tables and comparisons of `erw.bench.survive` and `erw.bench.checkpoint`, from records."""

from erw.bench import checkpoint, survive

KILL = {
    "case": "erw", "moment": "save", "killed": [1], "phase": "warmup", "partial": True, "newest": 128, "announced": 128,
    "trained": 192, "exits": [69, -9], "seconds": 5.5, "faults": [],
}  # fmt: skip


def test_a_records_summary_counts_what_was_lost():
    kills = [KILL, {**KILL, "case": "none", "moment": "any", "killed": [0, 1], "partial": False, "trained": 96, "newest": 0}]
    found = survive.summary(kills)
    assert found["kills"] == 2 and found["faults"] == 0 and found["of one rank alone"] == 1
    assert found["case"] == {"erw": 1, "none": 1} and found["images trained again, most"] == 96
    assert survive.summary([{**KILL, "faults": ["checkpoint 000000000128 differs"]}])["faults"] == 1
    record = {"kills": kills, "settings": {"save_every": 4}, "summary": found | {"restarts compared": 2}}
    text = survive.table(record)
    assert "| erw | zero3, bf16 | 1 | 0 | 1 | 0 | 0 | 1 | 1 | 0 |" in text
    assert "At most 96 images were trained again" in text and "ended after 5.5 s (median)" in text


def test_the_table_of_costs_has_a_row_a_mode():
    rows = {
        "none": {"step_seconds": 1.0},
        "waited for": {"step_seconds": 1.01, "blocked_seconds": 2.5, "longer_seconds": 2.6},
        "in the background": {"step_seconds": 1.2, "blocked_seconds": 0.25, "longer_seconds": 1.3},
    }
    record = {"model": "s2", "batch": 8, "checkpoint_bytes": 5.3e8, "every": 4, "rounds": 2, "steps": 12, "rows": rows,
              "cpu": "a CPU", "threads": 1, "torch": "2.14"}  # fmt: skip
    text = checkpoint.table(record)
    assert "| none |  |  | 1.00 |" in text and "| in the background | 0.25 | 1.30 | 1.20 |" in text
    assert "SiT-S/2, batch 8, one rank; 530 MB a checkpoint" in text
