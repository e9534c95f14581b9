"""The benchmark's DeepSpeed row trains what its bare rows train."""

import pytest
import torch

from erw.bench._build import build
from erw.bench._ladder import Setup
from erw.bench._scene import Scene

CPU = torch.device("cpu")


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 1e-2)])
def test_the_engine_s_row_has_the_bare_loop_s_losses(one_rank, precision, tolerance):
    scene = Scene("tiny", 4, feature_width=12)
    inputs = scene.inputs(CPU)
    fast = {"code": "ours", "precision": precision, "loss": "vectorised", "optimizer": "adamw_ema", "host_reads": False}
    bare, engine = (build(Setup(**fast, engine=engine), scene, CPU, None) for engine in (False, True))
    for _ in range(2):
        expected, found = bare(*inputs), engine(*inputs)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            # A cosine's rounding is that of 1, however small it is.
            assert found[name].item() == pytest.approx(value.item(), rel=tolerance, abs=tolerance)
    engine.release()
