"""A whole pilot on the digits, small: trained, chosen, written down; run again, nothing is trained twice."""

import json

import pytest

pytestmark = pytest.mark.slow

SIZE = [
    "--method.projection_depth",
    "2",
    "--method.warmup_images",
    "640",
    "--train.images",
    "6400",
    "--train.batch",
    "16",
    "--model.depth",
    "3",
]


@pytest.fixture(scope="module")
def tuned(run_erw, tmp_path_factory):
    out = tmp_path_factory.mktemp("tune")
    command = ["tune-warmup", "digits-erw", "--out", str(out), "--share", "0.1", "--depths", "1,2", *SIZE]
    first, second = (run_erw(*command, program="-m erw.cli") for _ in range(2))
    assert first.returncode == 0, first.stderr[-3000:]
    assert second.returncode == 0, second.stderr[-3000:]
    return out, first.stdout, second.stdout


def test_it_prints_what_to_train_with_and_writes_it_down(tuned):
    out, said, _ = tuned
    record = json.loads((out / "tune-warmup.json").read_text())
    assert record["depth"] in (1, 2) and record["warmup_images"] % 16 == 0
    assert f"--method.depth {record['depth']} --method.warmup_images {record['warmup_images']}" in said
    assert set(record["depths"]) == {"1", "2"} and all(len(d["seeds"]) == 1 for d in record["depths"].values())
    assert (out / "tune-warmup.md").read_text().strip() in said and (out / "tune-warmup.png").stat().st_size > 5000


def test_run_again_it_trains_nothing(tuned):
    _, first, second = tuned
    assert second.strip().splitlines()[-8:] == first.strip().splitlines()[-8:]
    assert "saved" in first and "saved" not in second
