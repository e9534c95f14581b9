"""Functions around matmuls: the same results as the separate operations, from fewer kept bytes."""

import pytest
import torch
import torch.nn.functional as F

from erw.bench._modes import kept_bytes
from erw.kernels.adaln_modulate import adaln_modulate_reference
from erw.kernels.bias_gelu import bias_gelu_reference
from erw.kernels.fused import adaln_linear, mlp

B, T, D, H = 2, 18, 24, 40


def leaves(dtype=torch.float32, seed=0, **shapes):
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=generator).to(dtype).requires_grad_() for n, s in shapes.items()}


def gradients(function, inputs):
    out = function(**inputs)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(out.dtype)
    return out, dict(zip(inputs, torch.autograd.grad(out, list(inputs.values()), weights), strict=True))


def separate_adaln_linear(x, shift, scale, weight, bias):
    return F.linear(adaln_modulate_reference(x, shift=shift, scale=scale), weight, bias)


def separate_mlp(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias):
    return F.linear(bias_gelu_reference(F.linear(x, fc1_weight), bias=fc1_bias), fc2_weight, fc2_bias)


PAIRS = {
    "adaln_linear": (adaln_linear, separate_adaln_linear,
                     {"x": (B, T, D), "shift": (B, D), "scale": (B, D), "weight": (H, D), "bias": (H,)}),
    "mlp": (mlp, separate_mlp,
            {"x": (B, T, D), "fc1_weight": (H, D), "fc1_bias": (H,), "fc2_weight": (D, H), "fc2_bias": (D,)}),
}  # fmt: skip
each = pytest.mark.parametrize("name", PAIRS)


@each
@pytest.mark.parametrize("kernels", [True, False])
def test_they_equal_the_separate_operations(name, kernels, monkeypatch):
    if not kernels:
        for module in ("adaln_modulate", "bias_gelu"):
            import sys

            monkeypatch.setattr(sys.modules[f"erw.kernels.{module}"], "runs_kernels", lambda tensor: False)
    fused, separate, shapes = PAIRS[name]
    inputs = leaves(**shapes)
    exact_out, exact = gradients(separate, {n: t.detach().double().requires_grad_() for n, t in inputs.items()})
    out, found = gradients(fused, inputs)
    assert (out - exact_out).abs().max() < 1e-5 * exact_out.abs().max()
    for name, value in found.items():
        assert value.shape == exact[name].shape
        assert (value - exact[name]).abs().max() < 2e-5 * exact[name].abs().max(), name


@each
def test_they_keep_less(name):
    fused, separate, shapes = PAIRS[name]
    inputs = leaves(torch.bfloat16, **shapes)
    kept = {function: kept_bytes(function, tuple(inputs), inputs) for function in (fused, separate)}
    activation = B * T * (D if name == "adaln_linear" else H) * 2
    assert kept[fused] <= kept[separate] - activation


@each
def test_checkpointing_compile_and_autocast(name):
    from torch.utils.checkpoint import checkpoint

    fused, _, shapes = PAIRS[name]
    inputs = leaves(**shapes)
    out, plain = gradients(fused, inputs)
    _, again = gradients(lambda **given: checkpoint(lambda kw: fused(**kw), given, use_reentrant=False), inputs)
    _, compiled = gradients(torch.compile(fused, fullgraph=True, backend="aot_eager"), inputs)
    for name in plain:
        assert torch.equal(plain[name], again[name]) and torch.equal(plain[name], compiled[name])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fused(**inputs).dtype == torch.bfloat16 and out.dtype == torch.float32
