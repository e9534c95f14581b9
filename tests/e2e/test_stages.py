"""ZeRO stages, accumulation and ranks agree with each other and with a loop written by hand."""

import json

import pytest
import torch

from erw.build import build_step
from erw.data.memory import digits_dataset
from erw.data.stream import stream
from erw.step import public_name
from states import difference, relative, state_at
from tiny import BATCH, tiny

pytestmark = [pytest.mark.slow, pytest.mark.dist]

STEPS = 20


@pytest.fixture(scope="module")
def runs(run_jobs, tmp_path_factory):
    """Twenty steps at every stage and precision, on two ranks, with weight decay (two parameter groups)."""
    folder = tmp_path_factory.mktemp("stages")
    cases = [(f"zero{s}", p) for p in ("fp32", "bf16") for s in range(4) if p == "fp32" or s > 0]
    cases += [("zero0", "autocast"), ("zero2", "autocast")]
    jobs = [
        tiny("sit", folder / f"{stage}-{precision}", images=STEPS * BATCH, optim={"weight_decay": 0.1, "clip": 0.5},
             engine={"ds_config": stage, "precision": precision})
        for stage, precision in cases
    ]  # fmt: skip
    # One parameter group, which our optimizer clips itself at stages 0 to 2.
    jobs += [
        tiny("sit", folder / f"{stage}-{precision}-plain", images=STEPS * BATCH, optim={"clip": 0.1},
             engine={"ds_config": stage, "precision": precision})
        for stage, precision in (*((f"zero{s}", "fp32") for s in range(4)), ("zero1", "bf16"), ("zero2", "bf16"))
    ]  # fmt: skip
    engine = {"ds_config": "zero1", "precision": "bf16"}
    jobs.append(tiny("sit", folder / "first-step", images=BATCH, engine=engine, optim={"lr": 1e-9}))
    run_jobs(jobs)
    return folder


def last(folder, name):
    return state_at(folder / name, STEPS * BATCH)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_fp32_stages_agree(runs, stage):
    assert relative(last(runs, "zero0-fp32"), last(runs, f"zero{stage}-fp32")) < 1e-6


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_clipping_on_the_device_agrees_with_deepspeeds(runs, stage):
    # Stage 3 is clipped by DeepSpeed, the others by our optimizer, over shards or whole gradients.
    assert relative(last(runs, "zero0-fp32-plain"), last(runs, f"zero{stage}-fp32-plain")) < 1e-6
    norms = [
        [json.loads(row)["grad_norm"] for row in (runs / f"zero{s}-fp32-plain" / "metrics.jsonl").read_text().splitlines()]
        for s in (0, stage)
    ]
    assert min(norms[0]) > 0.1 and norms[1] == pytest.approx(norms[0], rel=1e-5)


def test_bf16_stages_one_and_two_are_bitwise_equal_and_three_is_close(runs):
    assert difference(last(runs, "zero1-bf16"), last(runs, "zero2-bf16")) == 0.0
    assert difference(last(runs, "zero1-bf16-plain"), last(runs, "zero2-bf16-plain")) == 0.0
    assert difference(last(runs, "zero1-bf16"), last(runs, "zero3-bf16")) < 1e-3


def test_autocast_stages_agree(runs):
    # Under autocast ZeRO sums gradients in bf16, where stage 0 sums them in fp32.
    assert relative(last(runs, "zero0-autocast"), last(runs, "zero2-autocast")) < 1e-2


def test_losses_of_all_precisions_are_near_each_other(runs):
    final = {}
    for folder in runs.iterdir():
        rows = [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]
        if len(rows) == STEPS:
            final[folder.name] = rows[-1]["loss"]
    assert len(final) == 15
    assert max(final.values()) - min(final.values()) < 0.02, final


def by_hand(config, steps: int):
    """Weights, moments and EMA after ``steps``, from plain PyTorch and the formulas of AdamW."""
    phase = config.method.phase(0)
    step = build_step(config, phase)
    batches = stream(digits_dataset(), config.train.seed, 0, BATCH, BATCH, 0, 1)
    (beta1, beta2), optim = config.optim.betas, config.optim
    state = {n: [p.detach().clone(), torch.zeros_like(p), torch.zeros_like(p), p.detach().clone()]
             for n, p in step.named_parameters()}  # fmt: skip
    for count in range(1, steps + 1):
        batch = next(batches)
        inputs = config.objective.draw(phase, config.train.seed, batch.latents, batch.labels, batch.index, 10)
        step.zero_grad()
        step(inputs.x, inputs.t, inputs.y, inputs.target, None)["loss"].backward()
        norm = torch.sqrt(sum(p.grad.square().sum() for p in step.parameters()))
        scale = min(1.0, optim.clip / (float(norm) + 1e-6))
        for name, p in step.named_parameters():
            w, m, v, ema = state[name]
            g = p.grad * scale
            m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
            decay = optim.weight_decay if w.dim() >= 2 else 0.0
            w = w * (1 - optim.lr * decay)
            w = w - optim.lr * (m / (1 - beta1**count)) / ((v / (1 - beta2**count)).sqrt() + optim.eps)
            d = optim.ema_decay(BATCH)
            state[name] = [w, m, v, d * ema + (1 - d) * w]
            p.data.copy_(w)
    keys = ("weights", "exp_avg", "exp_avg_sq", "ema")
    return {key: {public_name(n): s[i] for n, s in state.items()} for i, key in enumerate(keys)}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_moments_and_ema_equal_a_hand_written_adamw(runs, stage, tmp_path):
    config = tiny("sit", tmp_path, optim={"weight_decay": 0.1, "clip": 0.5})
    expected, found = by_hand(config, STEPS), last(runs, f"zero{stage}-fp32")
    for key, tensors in expected.items():
        assert set(found[key]) - {"pos_embed"} == set(tensors)
        for name, tensor in tensors.items():
            # Sums over two ranks round differently; twenty steps of Adam carry that on.
            assert torch.allclose(found[key][name], tensor, rtol=1e-4, atol=2e-6), (key, name)


def test_the_first_step_is_exact_from_unrounded_masters(runs, tmp_path):
    # DeepSpeed's own masters would start as weights rounded to bf16, an error of 2^-9 relative.
    config = tiny("sit", tmp_path)
    start = {public_name(n): p.detach() for n, p in build_step(config, config.method.phase(0)).named_parameters()}
    after = state_at(runs / "first-step", BATCH)
    for key in ("weights", "ema"):
        assert max(float((after[key][n] - p).abs().max()) for n, p in start.items()) < 1e-7


def test_accumulation_and_ranks_agree(run_jobs, tmp_path):
    """1 rank x 8, 2 ranks x 4 and 4 ranks x 2 micro-batches of two images are the same step."""
    for ranks, accumulation in ((1, 8), (2, 4), (4, 2)):
        out = tmp_path / f"{ranks}x{accumulation}"
        engine = {"ds_config": "zero1", "precision": "fp32", "accumulation": accumulation}
        run_jobs([tiny("repa", out, engine=engine)], ranks=ranks)
    states = [state_at(tmp_path / name, 6 * BATCH) for name in ("1x8", "2x4", "4x2")]
    assert relative(states[0], states[1]) < 1e-6 and relative(states[0], states[2]) < 1e-6
