"""ERW's hand-over gives the memory of its first phase back, and parameters' state is there for what trains only."""

import gc
import weakref

import pytest

from tiny import BATCH, random_step_inputs, tiny

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("stage", ["zero0", "zero1", "zero2", "zero3"])
def test_a_warmup_engine_is_freed_and_holds_its_own_state_only(one_rank, stage, tmp_path):
    from train_ds import build_engine

    precision = "fp32" if stage == "zero0" else "bf16"
    config = tiny("erw", tmp_path, engine={"ds_config": stage, "precision": precision})
    engine = build_engine(config, config.method.phase(0), one_rank, None)
    assert engine.stage == min(int(stage[-1]), 2)
    trained = sum(p.numel() for p in engine.step_module.parameters())
    state = sum(engine.optimizer.state[t]["ema"].numel() for t in engine.shards.owned())
    whole = sum(p.numel() for p in build_engine_parameters(config))
    assert trained <= state < 1.01 * trained + 64 and state < 0.8 * whole
    for _ in range(2):
        engine.backward(engine(*random_step_inputs(config, config.method.phase(0), BATCH))["loss"])
        engine.step(1e-3)
    held = [weakref.ref(engine.step_module), *(weakref.ref(t) for t in engine.shards.owned())]
    engine.release()
    del engine
    gc.collect()
    assert not any(ref() is not None for ref in held)


def build_engine_parameters(config):
    """Parameters of the full phase."""
    from erw.build import build_step

    return build_step(config, config.method.phase(config.method.warmup_images)).parameters()
