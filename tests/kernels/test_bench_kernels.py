"""The kernel benchmark: every way to do a pair is the same function, keeps what it says, and has its rows in the record."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from erw.bench import _pairs
from erw.bench import kernels as bench
from erw.bench._modes import kept_bytes, leaves, modes
from erw.bench._pairs import PAIRS, errors, through_gelu
from erw.bench._timing import Deadline
from erw.kernels import Case
from erw.kernels._launch import INTERPRETED

CPU = torch.device("cpu")
CASE = Case(batch=2, tokens=9, width=32, heads=4)
WAYS = [(name, way) for name, pair in PAIRS.items() for way in pair.ways]
on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="of the CPU's form")


def exact_mlp(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias):
    return F.linear(F.gelu(F.linear(x, fc1_weight, fc1_bias)), fc2_weight, fc2_bias)


def gradients(function, inputs):
    out = function(**inputs)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, list(inputs.values()), weights)]


@pytest.mark.parametrize(("name", "way"), WAYS)
def test_every_way_is_the_same_function(name, way):
    pair = PAIRS[name]
    inputs = pair.draw(CASE, CPU)
    plain = exact_mlp if way == "epilogue" else pair.ways["eager"]
    exact = gradients(plain, leaves({n: t.double() for n, t in inputs.items()}, inputs))
    for mine, true in zip(gradients(pair.ways[way], leaves(inputs, inputs)), exact, strict=True):
        assert mine.shape == true.shape and (mine - true).abs().max() < 2e-5 * true.abs().max()


def test_the_epilogue_of_a_cpu_is_the_exact_gelu():
    x, weight, bias = (torch.randn(size, dtype=torch.float64) for size in ((7, 5), (6, 5), (6,)))
    found, before = torch._addmm_activation(bias, x, weight.T, use_gelu=True), F.linear(x, weight, bias)
    assert torch.allclose(found, F.gelu(before), atol=1e-14)
    assert (found - F.gelu(before, approximate="tanh")).abs().max() > 1e-5


@pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason="needs TRITON_INTERPRET=1 or a CUDA device")
def test_the_backward_that_a_gpu_takes_is_that_of_the_tanh_gelu():
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    hidden, dout = (torch.randn(12, 40, device=device, dtype=torch.float64) for _ in range(2))
    bias = torch.randn(40, device=device, dtype=torch.float64)
    shifted = (hidden + bias).requires_grad_()
    (wanted,) = torch.autograd.grad(F.gelu(shifted, approximate="tanh"), shifted, dout)
    dhidden, dbias = through_gelu(hidden.float(), bias.float(), dout.float(), tanh=True)
    assert (dhidden - wanted).abs().max() < 1e-5 and (dbias - wanted.sum(dim=0)).abs().max() < 1e-4


@on_cpu
@pytest.mark.parametrize(
    ("name", "way", "kept"),
    [
        ("mlp", "eager", 2 * 18 * 128 * 4),
        ("mlp", "separate", 2 * 18 * 128 * 4),
        ("mlp", "fused", 18 * 128 * 4),
        ("mlp", "epilogue", 18 * 128 * 4),
        ("adaln_linear", "fused", 2 * 18 * 4),
    ],
)
def test_bytes_kept_are_those_of_the_formula(name, way, kept):
    pair = PAIRS[name]
    inputs = pair.draw(CASE, CPU)
    assert kept_bytes(pair.ways[way], tuple(inputs), inputs) == kept


def test_storages_are_counted_once_and_inputs_not_at_all():
    def way(x, y):
        half = (x * y).exp()
        return half * half.view(-1).view_as(half)

    inputs = {"x": torch.randn(3, 4), "y": torch.randn(3, 4)}
    assert kept_bytes(way, ("x", "y"), inputs) == 3 * 4 * 4


def test_modes_are_forward_backward_and_both():
    calls = []

    def op(x, y, factor):
        calls.append(1)
        return factor * x * x + y

    found = modes(op, ("x",), {"x": torch.full((3,), 2.0), "y": torch.ones(3)}, {"factor": 3.0})
    assert torch.equal(found["forward"]()[0], torch.full((3,), 13.0))
    done = len(calls)
    (backward,), (again,) = found["backward"](), found["backward"]()
    assert len(calls) == done and torch.equal(backward, again)
    assert found["both"]()[0].shape == (3,) and len(calls) == done + 1
    assert set(modes(lambda x: x, (), {"x": torch.ones(1)}, {})) == {"forward"}


def test_errors_show_a_wrong_way():
    pair = PAIRS["adaln_linear"]

    def skewed(x, *, shift, scale, weight, bias):
        return F.linear(F.layer_norm(x, x.shape[-1:]) * scale.unsqueeze(1) + shift.unsqueeze(1), weight, bias)

    found = errors({"eager": pair.ways["eager"], "wrong": skewed}, pair, CASE, CPU)
    assert max(found["eager"].values()) < 2e-6 and min(found["wrong"].values()) > 0.1


def dry_run(tmp_path, *arguments: str) -> dict:
    bench.main(["--dry-run", "--size", "S", "--out", str(tmp_path), *arguments])
    return json.loads(next(tmp_path.glob("*.json")).read_text())


@on_cpu
def test_dry_run_has_a_row_for_each_way_and_mode(tmp_path, capsys, monkeypatch):
    small = {name: replace(pair, shapes=lambda case, pair=pair: pair.shapes(CASE)) for name, pair in PAIRS.items()}
    monkeypatch.setattr(bench, "PAIRS", small)
    record = dry_run(tmp_path, "--operations", "mlp,adaln_linear,gated_residual")
    rows = {(row["operation"], row["provider"], row["mode"]): row for row in record["pairs"]}
    assert set(rows) == {(name, way, mode) for name, way in WAYS for mode in ("forward", "backward", "both")}
    assert len(rows) == len(record["pairs"])
    assert {row["operation"] for row in record["rows"]} == {"gated_residual"}
    tokens, width = 2 * 16, 384
    for (name, way, mode), row in rows.items():
        matmuls = {"mlp": 8, "adaln_linear": 3}[name] * {"forward": 1, "backward": 2, "both": 3}[mode]
        assert row["flops"] == matmuls * 2 * tokens * width * width
        assert row["tflops"] == pytest.approx(row["flops"] / row["ms"]["median"] / 1e9)
        assert max(row["error"].values()) < (2e-3 if way == "epilogue" else 2e-6)
        assert row["kept_bytes"] > 0 and row["faster_than_eager"] > 0
    shown = capsys.readouterr().out
    assert shown.count("\nmlp ") == 12 and shown.count("\nadaln_linear ") == 9


def test_pairs_alone_make_no_picture_and_late_ones_are_listed(tmp_path, monkeypatch):
    record = dry_run(tmp_path, "--operations", "mlp", "--minutes", "0")
    late = {"operation": "mlp", "batch": 2, "status": "not measured: out of time"}
    assert record["rows"] == [] and record["pairs"] == [late] and not list(tmp_path.glob("*.png"))
    monkeypatch.setattr(_pairs, "measure", lambda pair, *_, **__: [{"operation": pair.name}])
    seen = []
    rows = _pairs.run(CPU, list(PAIRS.values()), [CASE], rounds=2, deadline=Deadline(99), compile=False,
                      report=lambda rows: seen.append(len(rows)))  # fmt: skip
    assert seen == [1, 2] and [row["operation"] for row in rows] == ["mlp", "adaln_linear"]


def test_an_unknown_operation_is_named(capsys, tmp_path):
    with pytest.raises(SystemExit) as exit_:
        bench.main(["--dry-run", "--operations", "mpl", "--out", str(tmp_path)])
    error = capsys.readouterr().err.strip().splitlines()
    assert exit_.value.code == 2 and len(error) == 1 and "'mpl' is not known; did you mean mlp" in error[0]
