"""The attention front: names, layouts, what cannot run says why."""

import sys
import warnings

import pytest
import torch

from erw.kernels import _matmul_attention
from erw.kernels.attention import BACKENDS, Problem, attention, attention_backend, attention_reference, choose, unusable


def drawn(tokens=37, head_width=72, dtype=torch.float32):
    return Problem(2, 3, tokens, head_width, dtype, torch.device("cpu")).draw()


@pytest.mark.parametrize("name", ["math", "sdpa", "flash", "matmul", "matmul, nothing kept"])
@pytest.mark.parametrize(("tokens", "head_width"), [(37, 72), (257, 64), (1, 8)])
def test_backends_agree_with_the_definition(name, tokens, head_width, monkeypatch):
    if name == "matmul, nothing kept":
        monkeypatch.setattr(_matmul_attention, "KEPT_BYTES", 0)
        name = "matmul"
    inputs = drawn(tokens, head_width)
    exact = attention_reference(*(t.double() for t in inputs))
    found = attention(*inputs, backend=name)
    assert found.shape == exact.shape and (found - exact).abs().max() < 1e-5
    gradient = torch.randn_like(exact)
    wanted = torch.autograd.grad(exact, inputs, gradient)
    for ours, true in zip(torch.autograd.grad(found, inputs, gradient.float()), wanted, strict=True):
        assert (ours - true).abs().max() < 1e-4


def test_bad_names_and_shapes_are_named():
    q, k, v = drawn()
    with pytest.raises(ValueError, match="backend is 'fa9', should be one of math, sdpa"):
        attention(q, k, v, backend="fa9")
    with pytest.raises(ValueError, match="should be \\(B, heads, T, H\\)"):
        attention(q, k[:, :, :5], v)


@pytest.mark.parametrize("name", ["cudnn", "efficient", "fa2", "fa3", "fa4", "xformers"])
def test_what_cannot_run_here_says_why(name):
    if torch.cuda.is_available():
        pytest.skip("on a CUDA device some of these can")
    reason = unusable(name, Problem(1, 1, 4, 8, torch.float32, torch.device("cpu")))
    assert reason and "\n" not in reason
    with pytest.raises((RuntimeError, ImportError)):
        attention_backend(name)(*drawn())


def test_nothing_else_is_tried_when_a_named_backend_fails():
    if torch.cuda.is_available():
        pytest.skip("on a CUDA device it can run")
    with pytest.raises(RuntimeError):
        attention(*drawn(), backend="cudnn")


def test_auto_takes_the_fastest_that_runs(monkeypatch):
    problem = Problem(1, 1, 4, 8, torch.float32, torch.device("cpu"))
    assert choose(problem, lambda run: 1.0)[0] in ("sdpa", "flash", "matmul")
    seconds = iter([3.0, 1.0, 2.0])
    module = sys.modules["erw.kernels.attention"]  # the package's attribute of that name is the function
    monkeypatch.setattr(module, "unusable", lambda name, _: None if name in ("sdpa", "flash", "fa2") else "no")
    monkeypatch.setattr(module, "_step", lambda *_: lambda: None)
    elsewhere = Problem(1, 1, 4, 8, torch.float32, torch.device("meta"))
    name, found = choose(elsewhere, lambda run: next(seconds))
    assert name == "flash" and found == {"sdpa": 3.0, "flash": 1.0, "fa2": 2.0, **{n: "no" for n in BACKENDS
                                         if n not in ("math", "sdpa", "flash", "fa2")}}  # fmt: skip


def test_the_reason_is_the_one_torch_gave_as_a_warning(monkeypatch):
    def refuse(*inputs):
        for text in (
            "Memory Efficient attention has been runtime disabled. (Triggered internally at sdp.h:1.)",
            "Flash attention kernel not used because: (Triggered internally at sdp.cpp:2.)",
            "Expected query to be of dtype: {Half, BFloat16}. (Triggered internally at sdp.h:3.)",
        ):
            warnings.warn(text, stacklevel=1)
        raise RuntimeError("No available kernel. Aborting execution.\nmore")

    monkeypatch.setattr(sys.modules["erw.kernels.attention"], "attention_backend", lambda name: refuse)
    problem = Problem(1, 1, 4, 8, torch.float32, torch.device("cpu"))
    reason = unusable("flash", problem)
    assert reason == "No available kernel. Aborting execution.: Expected query to be of dtype: {Half, BFloat16}."
