"""One run over four launches, each at another stage, on other ranks: ZeRO-2 on 2, ZeRO-0 on 1, ZeRO-3 on 4, ZeRO-1 on 2."""

import json
from pathlib import Path

import pytest

from erw.bench import _lives, _states
from faults import noting_samples
from states import relative, state_at
from tiny import BATCH, tiny

pytestmark = [pytest.mark.slow, pytest.mark.dist]

LEG = 3  # steps
# Stage and ranks of each launch. bf16 begins at ZeRO-1.
CHAINS = {
    "fp32": [("zero2", 2), ("zero0", 1), ("zero3", 4), ("zero1", 2)],
    "bf16": [("zero2", 2), ("zero1", 1), ("zero3", 4), ("zero1", 2)],
}
LAST = 4 * LEG * BATCH


def job(out: Path, precision: str, stage: str, legs: int):
    engine = {"ds_config": stage, "precision": precision}
    return tiny("sit", out, images=legs * LEG * BATCH, engine=engine, train={"keep": 9, "resume": "auto"})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Both chains, and the same twelve steps undisturbed on two ranks and on one."""
    folder = tmp_path_factory.mktemp("chains")
    for leg in range(4):
        ranks = CHAINS["fp32"][leg][1]
        jobs = [job(folder / precision, precision, CHAINS[precision][leg][0], leg + 1) for precision in CHAINS]
        if leg < 2:
            jobs += [job(folder / f"{precision}-{ranks}", precision, "zero2", 4) for precision in CHAINS]
        life = _lives.start(jobs, ranks, folder / f"logs{leg}", noting_samples)
        codes = life.wait(200)
        life.end()
        assert codes == [0] * ranks, life.said() + life.said(ranks - 1)
    return folder


@pytest.mark.parametrize("precision", CHAINS)
def test_weights_moments_and_ema_are_bitwise_those_of_the_checkpoint_at_every_stage(precision, runs):
    rows = _states.restored(runs / precision)
    assert [(row["images"], row["ranks"]) for row in rows] == [
        (leg * LEG * BATCH, CHAINS[precision][leg][1]) for leg in (1, 2, 3)
    ]
    for row in rows:
        assert row["state"] == _states.of_checkpoint(Path(row["from"]))


@pytest.mark.parametrize("precision", CHAINS)
def test_every_sample_has_the_same_data_noise_time_and_label_whatever_the_ranks(precision, runs):
    whole, chain = ({}, {})
    for samples, run in ((whole, f"{precision}-1"), (chain, precision)):
        for file in (runs / run).glob("samples-*.jsonl"):
            for image, digest in map(json.loads, file.read_text().splitlines()):
                assert samples.setdefault(image, digest) == digest
    assert sorted(whole) == list(range(LAST)) and chain == whole


def test_the_trajectory_in_fp32_is_the_same_to_rounding(runs):
    for ranks in (1, 2):
        assert relative(state_at(runs / "fp32", LAST), state_at(runs / f"fp32-{ranks}", LAST)) < 1e-5
        assert losses(runs / "fp32") == pytest.approx(losses(runs / f"fp32-{ranks}"), rel=1e-5, abs=1e-6)


def test_the_trajectory_in_bf16_is_within_the_spread_of_ranks(runs):
    spread = relative(state_at(runs / "bf16-1", LAST), state_at(runs / "bf16-2", LAST))
    away = min(relative(state_at(runs / "bf16", LAST), state_at(runs / f"bf16-{ranks}", LAST)) for ranks in (1, 2))
    assert 0 < away <= spread, (away, spread)


def losses(run: Path) -> list[float]:
    rows = [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["images"] for row in rows] == [BATCH * step for step in range(1, 4 * LEG + 1)]
    return [row["loss"] for row in rows]
