"""A small SiT trained with kernels and with plain PyTorch: the same curve."""

from dataclasses import replace

import pytest
import torch

from erw import ops
from erw.errors import UserError
from erw.kernels._launch import INTERPRETED
from erw.models.sit import SiT
from erw.optim import AdamWEMA, param_groups
from erw.step import TrainStep
from tiny import MODEL, random_step_inputs, tiny

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STEPS = 50


def curve(name: str, opset: ops.OpSet, tmp_path) -> list[float]:
    """Losses of fifty steps at fp32 from non-zero weights."""
    config = tiny("repa", tmp_path)
    shape = replace(MODEL, depth=2, qk_norm=True, rope=True)
    method = replace(config.method, depth=1)
    torch.manual_seed(0)
    model = SiT(shape, opset)
    step = TrainStep(model, method.build_heads(shape, config.teacher_specs), method, config.objective, method.phase(0), opset)
    for p in step.parameters():
        torch.nn.init.normal_(p, std=0.1)
    step.to(DEVICE)
    optimizer = AdamWEMA(param_groups(step.parameters(), 0.01), lr=1e-4, betas=(0.9, 0.999), eps=1e-8, ema_decay=0.99,
                         max_norm=1.0, kernels=name == "fused")  # fmt: skip
    inputs = random_step_inputs(config, method.phase(0), count=4)
    losses = []
    for _ in range(STEPS):
        loss = step(*inputs)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.slow
def test_fifty_steps_with_kernels_follow_the_same_curve(tmp_path):
    if DEVICE == "cpu" and not INTERPRETED:
        pytest.skip("needs a CUDA device or TRITON_INTERPRET=1")
    plain, fused = (curve(name, ops.resolve(name), tmp_path) for name in ("reference", "fused"))
    assert plain[-1] < plain[0]
    assert max(abs(a - b) for a, b in zip(plain, fused, strict=True)) < 1e-5 * max(map(abs, plain))


def test_auto_is_decided_once_by_the_device():
    assert (ops.resolve("auto") is ops.REFERENCE) == (not torch.cuda.is_available())
    with pytest.raises(UserError, match="known: auto, reference, fused"):
        ops.resolve("fast")
