"""Our step under ZeRO-1 and 2 beside DeepSpeed's own, with others and alone."""

import json

import pytest

from erw.build import build_step
from erw.engine.config import read_ds_config
from erw.engine.engine import Engine
from erw.engine.flat_step import FlatStep
from states import difference, relative, state_at
from tiny import BATCH, tiny

pytestmark = [pytest.mark.slow, pytest.mark.dist]

STEPS = 6
STAGES = ("zero1", "zero2")
ACCUMULATED = {"precision": "fp32", "accumulation": 2}


def deepspeeds(folder) -> str:
    """A DeepSpeed file with which its own step stays: sums of another dtype are not ours."""
    file = folder / "theirs.json"
    file.write_text(json.dumps(read_ds_config("zero2") | {"data_types": {"grad_accum_dtype": "fp32"}}))
    return str(file)


def in_turn(folder) -> str:
    """A DeepSpeed file that does not reduce during the backward."""
    file, settings = folder / "in-turn.json", read_ds_config("zero1")
    settings["zero_optimization"]["overlap_comm"] = False
    file.write_text(json.dumps(settings))
    return str(file)


@pytest.fixture(scope="module", params=[1, 2], ids=["alone", "two ranks"])
def runs(request, run_jobs, tmp_path_factory):
    """Both phases of ERW: by our step and by DeepSpeed's."""
    folder = tmp_path_factory.mktemp("flat")
    engines = {stage: {"ds_config": stage, "precision": "bf16"} for stage in STAGES}
    engines |= {"theirs": {"ds_config": deepspeeds(folder), "precision": "bf16"}}
    engines |= {"in turn": {"ds_config": in_turn(folder), "precision": "bf16"}}
    engines |= {f"{stage}-accumulated": {"ds_config": stage, **ACCUMULATED} for stage in ("zero0", *STAGES)}
    run_jobs([tiny("erw", folder / name, images=STEPS * BATCH, engine=engine) for name, engine in engines.items()],
             request.param)  # fmt: skip
    return folder


def last(runs, name):
    return state_at(runs / name, STEPS * BATCH)


def test_it_moves_weights_moments_and_ema_as_deepspeeds_does(runs):
    # The norm alone is summed in another order.
    assert relative(last(runs, "zero2"), last(runs, "theirs")) < 1e-6


@pytest.mark.parametrize("other", ["zero2", "in turn"])
def test_equal_bits(runs, other):
    assert difference(last(runs, "zero1"), last(runs, other)) == 0.0


@pytest.mark.parametrize("stage", STAGES)
def test_micro_batches_add_up(runs, stage):
    assert relative(last(runs, "zero0-accumulated"), last(runs, f"{stage}-accumulated")) < 1e-6


def test_whose_step_it_is(one_rank, tmp_path):
    for name, ours in (("zero1", True), ("zero2", True), (deepspeeds(tmp_path), False)):
        config = tiny("sit", tmp_path, engine={"ds_config": name, "precision": "bf16"})
        step = build_step(config, config.method.phase(0))
        engine = Engine(step, config.engine, config.optim, BATCH, one_rank)
        assert isinstance(engine._deepspeed.optimizer.step, FlatStep) is ours
        engine.release()
