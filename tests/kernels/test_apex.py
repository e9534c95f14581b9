"""apex behind our signatures: wiring and numbers against a stand-in of its signatures (the real package needs a GPU)."""

import json
import re
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

from erw.bench import kernels as bench
from erw.kernels import apex
from erw.kernels._adamw import adamw_ema_reference
from erw.kernels.adaln_modulate import adaln_modulate_reference

CPU = torch.device("cpu")
RATES = {"beta1": 0.9, "beta2": 0.99, "eps": 1e-3, "weight_decay": 0.1, "ema_decay": 0.8}


def fused_layer_norm(input, normalized_shape, eps=1e-6, memory_efficient=False):
    """As `apex.normalization.fused_layer_norm.fused_layer_norm`, which takes autocast's dtype where it is on."""
    assert isinstance(normalized_shape, (list, tuple)) and isinstance(eps, float) and memory_efficient is False
    if torch.is_autocast_enabled(input.device.type):
        input = input.to(torch.get_autocast_dtype(input.device.type))
    return F.layer_norm(input, normalized_shape, eps=eps)


def multi_tensor_applier(op, noop_flag_buffer, tensor_lists, *args):
    """As apex's: the chunk size comes first."""
    return op(65536, noop_flag_buffer, tensor_lists, *args)


def multi_tensor_adam(chunk, noop, lists, lr, beta1, beta2, eps, step, mode, bias_correction, weight_decay):
    """As `amp_C.multi_tensor_adam`: plain numbers, one dtype for gradients and parameters, ``mode`` 1 decoupled."""
    assert isinstance(lr, float) and isinstance(step, int) and noop.dtype == torch.int32 and noop.numel() == 1
    correction1, correction2 = (1 - beta1**step, 1 - beta2**step) if bias_correction else (1.0, 1.0)
    for g, p, m, v in zip(*lists, strict=True):
        assert g.dtype == p.dtype and m.dtype == v.dtype == torch.float32
        g = g if mode else g + weight_decay * p
        m.data.mul_(beta1).add_(g, alpha=1 - beta1)
        v.data.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        update = (m / correction1) / ((v / correction2).sqrt() + eps) + (weight_decay * p if mode else 0.0)
        p.data.sub_(lr * update)


def module(name: str, **content) -> ModuleType:
    made = ModuleType(name)
    made.__spec__ = ModuleSpec(name, None)
    vars(made).update(content)
    return made


@pytest.fixture
def stand_in(monkeypatch):
    parts = [
        module("apex", __path__=[]),
        module("apex.normalization", __path__=[]),
        module("apex.normalization.fused_layer_norm", fused_layer_norm=fused_layer_norm),
        module("apex.multi_tensor_apply", multi_tensor_applier=multi_tensor_applier),
        module("fused_layer_norm_cuda"),
        module("amp_C", multi_tensor_adam=multi_tensor_adam),
    ]
    for part in parts:
        monkeypatch.setitem(sys.modules, part.__name__, part)


@pytest.fixture
def no_apex(monkeypatch):
    for name in ("apex", "apex.normalization", "apex.normalization.fused_layer_norm", "apex.multi_tensor_apply", "amp_C"):
        monkeypatch.setitem(sys.modules, name, None)


def drawn(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).to(dtype)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adaln_is_ours(stand_in, dtype, autocast):
    x = (drawn(2, 5, 24) + 3).requires_grad_()
    shift, scale = (drawn(2, 24, dtype=dtype).roll(i).requires_grad_() for i in range(2))
    gradient = drawn(2, 5, 24, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        out = apex.adaln_modulate(x, shift=shift, scale=scale)
    wanted = adaln_modulate_reference(x, shift=shift, scale=scale)
    assert out.dtype == dtype and torch.equal(out, wanted)
    pairs = zip(*(torch.autograd.grad(o, (x, shift, scale), gradient) for o in (out, wanted)), strict=True)
    assert all(torch.allclose(ours, true, rtol=1e-5, atol=1e-6) for ours, true in pairs)


def test_adaln_names_a_wrong_shape(stand_in):
    with pytest.raises(ValueError, match=re.escape("scale has shape (2, 23), should be (B, D) = (2, 24)")):
        apex.adaln_modulate(drawn(2, 5, 24), shift=drawn(2, 24), scale=drawn(2, 23))


@pytest.mark.parametrize("half", [False, True])
def test_the_step_is_ours(stand_in, half):
    def states():
        made = [drawn(40), drawn(4, 10).flatten(), drawn(40) * 0.1, drawn(40).square() * 0.01, drawn(40) + 1]
        return [t.to(torch.bfloat16) if half and i == 1 else t.clone() for i, t in enumerate(made)]

    ours, theirs, step = states(), states(), torch.tensor(2.0)
    copies = [torch.zeros(40, dtype=torch.bfloat16) for _ in range(2)]
    scale = torch.tensor(0.5)
    for count in (2, 3):
        adamw_ema_reference(*ours, step=step, lr=0.05, grad_scale=scale, copy=copies[0], **RATES)
        apex.adamw_ema(*theirs, step=count, lr=0.05, grad_scale=scale, copy=copies[1], **RATES)
    for mine, other in zip((*ours, copies[0]), (*theirs, copies[1]), strict=True):
        assert mine.dtype == other.dtype and torch.allclose(mine.float(), other.float(), rtol=1e-5, atol=1e-6)
    assert not torch.equal(theirs[0], states()[0]) and torch.equal(theirs[1], states()[1])  # gradients stay


def test_the_step_wants_fp32_and_may_be_empty(stand_in):
    halves = [drawn(4, dtype=torch.bfloat16) for _ in range(5)]
    with pytest.raises(ValueError, match="param is torch.bfloat16, should be torch.float32"):
        apex.adamw_ema(*halves, step=0, lr=0.1, **RATES)
    apex.adamw_ema_list([], [], [], [], [], step=0, lr=0.1, **RATES)


def test_without_apex_one_line_says_where_to_get_it(no_apex):
    assert apex.missing(torch.device("cuda")) == "not installed"
    for call in (
        lambda: apex.adaln_modulate(drawn(1, 2, 8), shift=drawn(1, 8), scale=drawn(1, 8)),
        lambda: apex.adamw_ema(*(drawn(4) for _ in range(5)), step=0, lr=0.1, **RATES),
    ):
        with pytest.raises(ImportError, match="the package called apex on the package index is another project") as found:
            call()
        assert "\n" not in str(found.value)


def test_what_is_missing_is_told_apart(stand_in, monkeypatch):
    assert apex.missing(torch.device("cuda")) is None and apex.missing(CPU) == "needs a CUDA device"
    monkeypatch.setitem(sys.modules, "amp_C", None)
    assert apex.missing(torch.device("cuda")).startswith("not NVIDIA's, or built without its CUDA extensions")


def dry_run(tmp_path) -> dict:
    bench.main(["--dry-run", "--size", "S", "--operations", "adaln_modulate,adamw_ema,gated_residual", "--out", str(tmp_path)])
    return json.loads(next(tmp_path.glob("*.json")).read_text())


def test_the_benchmark_has_its_rows_where_it_is_installed(stand_in, tmp_path, monkeypatch):
    monkeypatch.setattr(apex, "missing", lambda device: None)
    record = dry_run(tmp_path)
    found = {(row["operation"], row["mode"]) for row in record["rows"] if row["provider"] == "apex"}
    assert record["apex"] == "present"
    assert found == {("adaln_modulate", "forward"), ("adaln_modulate", "backward"), ("adaln_modulate", "both"),
                     ("adamw_ema", "forward")}  # fmt: skip
    assert list(tmp_path.glob("*.png"))


def test_the_record_says_where_it_is_not(no_apex, tmp_path, capsys):
    record = dry_run(tmp_path)
    assert record["apex"] == "not installed" and "apex: not installed" in capsys.readouterr().out
    assert all(row["provider"] != "apex" for row in record["rows"])
