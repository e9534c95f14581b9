"""The fast path under ZeRO: kernels, one modulation matmul and compiled blocks train what plain PyTorch trains.

Both phases of ERW, several steps each: gradients of compiled blocks reach ZeRO's buckets on every step, not the first alone.
"""

import pytest

from erw.engine.config import EngineConfig, check_stage
from erw.errors import UserError
from states import relative, state_at
from tiny import BATCH, tiny

LAST = 6 * BATCH
FUSED, COMPILED = {"ops": "fused"}, {"compile": "blocks"}
CASES = {f"fused-{stage}": {"ds_config": stage, **FUSED} for stage in ("zero0", "zero1", "zero2", "zero3")}
CASES |= {f"compiled-{stage}": {"ds_config": stage, **COMPILED} for stage in ("zero1", "zero2")}


@pytest.fixture(scope="module")
def runs(run_jobs, tmp_path_factory):
    """A run for each case, and the plain one."""
    folder = tmp_path_factory.mktemp("fast")
    cases = {"plain": {"ds_config": "zero1"}, **CASES}
    run_jobs([tiny("erw", folder / name, engine={"precision": "fp32", **engine}) for name, engine in cases.items()])
    return folder


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("name", CASES)
def test_the_same_weights_moments_and_ema(runs, name):
    assert relative(state_at(runs / "plain", LAST), state_at(runs / name, LAST)) < 1e-5


def test_what_cannot_be_compiled_is_refused():
    with pytest.raises(UserError, match="--engine.compile blocks does not work at ZeRO-3"):
        check_stage(EngineConfig(ds_config="zero3", compile="blocks"))
    with pytest.raises(UserError, match="choose recompute none or full"):
        EngineConfig(compile="blocks", recompute="selective")
