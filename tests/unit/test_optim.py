"""AdamW with EMA against hand-written formulas and torch's own AdamW."""

import math

import pytest
import torch

from erw.errors import UserError
from erw.optim import AdamWEMA, OptimConfig, param_groups, parse_half_life

SETTINGS = {"lr": 3e-3, "betas": (0.9, 0.99), "eps": 1e-8, "ema_decay": 0.9}


def weights(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(4, 3), (5,), (2, 2, 2)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


def gradients(step: int) -> list[torch.Tensor]:
    return [g.detach() * (1 + step) for g in weights(100 + step)]


def run(optimizer, params, steps: int) -> None:
    for step in range(steps):
        for p, g in zip(params, gradients(step), strict=True):
            p.grad = g.clone()
        optimizer.step()


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_moments_weights_and_ema_follow_the_formulas_from_the_first_step(decay):
    params = weights()
    optimizer = AdamWEMA([{"params": params, "weight_decay": decay}], **SETTINGS)
    by_hand = [[p.detach().clone(), torch.zeros_like(p), torch.zeros_like(p), p.detach().clone()] for p in params]
    (beta1, beta2), lr = SETTINGS["betas"], SETTINGS["lr"]
    for step in range(5):
        for p, g in zip(params, gradients(step), strict=True):
            p.grad = g.clone()
        optimizer.step()
        for entry, g, p in zip(by_hand, gradients(step), params, strict=True):
            w, m, v, ema = (x.detach() for x in entry)
            m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
            m_hat, v_hat = m / (1 - beta1 ** (step + 1)), v / (1 - beta2 ** (step + 1))
            w = w - lr * decay * w - lr * m_hat / (v_hat.sqrt() + SETTINGS["eps"])
            ema = 0.9 * ema + 0.1 * w
            entry[:] = [w, m, v, ema]
            state = optimizer.state[p]
            for ours, theirs in zip((p, state["exp_avg"], state["exp_avg_sq"], state["ema"]), entry, strict=True):
                # The bias correction is computed in fp32, where steps are counted.
                assert torch.allclose(ours, theirs, rtol=2e-6, atol=1e-12)


def test_equals_torchs_adamw_over_many_steps():
    ours, theirs = weights(), weights()
    run(AdamWEMA([{"params": ours, "weight_decay": 0.05}], **SETTINGS), ours, 50)
    reference = torch.optim.AdamW(theirs, lr=SETTINGS["lr"], betas=SETTINGS["betas"], weight_decay=0.05)
    run(reference, theirs, 50)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-8)


def test_clipping_equals_torchs():
    ours, theirs = weights(), weights()
    run(AdamWEMA(ours, **SETTINGS, max_norm=0.5), ours, 3)
    reference = torch.optim.AdamW(theirs, lr=SETTINGS["lr"], betas=SETTINGS["betas"], weight_decay=0.0)
    for step in range(3):
        for p, g in zip(theirs, gradients(step), strict=True):
            p.grad = g.clone()
        torch.nn.utils.clip_grad_norm_(theirs, 0.5)
        reference.step()
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_step_leaves_everything_untouched(bad):
    params = weights()
    optimizer = AdamWEMA(params, **SETTINGS, max_norm=1.0)
    run(optimizer, params, 2)
    before = [(p.detach().clone(), {k: v.clone() for k, v in optimizer.state[p].items()}) for p in params]
    for p, g in zip(params, gradients(2), strict=True):
        p.grad = g.clone()
    params[1].grad[0] = bad
    optimizer.step()
    for p, (weight, state) in zip(params, before, strict=True):
        assert torch.equal(p, weight)
        assert all(torch.equal(optimizer.state[p][k], state[k]) for k in state)
    run(optimizer, params, 1)
    assert all(p.isfinite().all() for p in params) and not torch.equal(params[0], before[0][0])


def test_moments_without_an_ema_are_refused():
    params = weights()
    optimizer = AdamWEMA(params, **SETTINGS)
    run(optimizer, params, 1)
    del optimizer.state[params[0]]["ema"]
    with pytest.raises(RuntimeError, match="not written by erw"):
        optimizer.step()


def test_decay_is_for_matrices_only():
    groups = param_groups(weights(), 0.1)
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0]
    assert all(p.dim() >= 2 for p in groups[0]["params"]) and all(p.dim() < 2 for p in groups[1]["params"])
    assert len(param_groups(weights(), 0.0)) == 1


def test_half_life_and_the_papers_alias():
    assert OptimConfig(ema_half_life=parse_half_life("0.9999@256")).ema_decay(256) == pytest.approx(0.9999, abs=1e-12)
    assert OptimConfig(ema_half_life=1000).ema_decay(1000) == pytest.approx(0.5)
    with pytest.raises(UserError, match="DECAY@BATCH"):
        parse_half_life("a@b")


def test_learning_rate_rises_from_zero():
    config = OptimConfig(lr=1.0, lr_warmup_images=100)
    assert [config.lr_at(i, 2000) for i in (0, 50, 100, 1000)] == [0.0, 0.5, 1.0, 1.0]


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_halves_bring_the_gradients_and_get_the_weights(compiled):
    """One pass instead of a copy into the masters' gradients, a step and a copy out of the masters."""
    apart, at_once = ([p.detach().float().requires_grad_() for p in weights()] for _ in range(2))
    halves = [p.detach().bfloat16().requires_grad_() for p in at_once]
    settings = SETTINGS | {"max_norm": 1.0, "compiled": compiled}
    first = AdamWEMA(apart, **settings)
    second = AdamWEMA(at_once, **settings, halves=dict(zip(at_once, halves, strict=True)))
    for step in range(3):
        for p, half, g in zip(apart, halves, gradients(step), strict=True):
            half.grad = g.bfloat16()
            p.grad = half.grad.float()
        first.step()
        second.step()
        torch.testing.assert_close(second.grad_norm, first.grad_norm)
    for p, q, half in zip(apart, at_once, halves, strict=True):
        assert torch.equal(p, q) and torch.equal(half, p.bfloat16())
        assert torch.equal(first.state[p]["ema"], second.state[q]["ema"])
