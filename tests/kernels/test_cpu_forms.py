"""Operations as a CPU's compiler takes them: values and gradients are those of the plain ones, whatever the dtype."""

import pytest
import torch
import torch.nn.functional as F

from erw.align.projector import Projector
from erw.kernels import SPECS
from erw.kernels._cpu_adaln import cpu_adaln_modulate, cpu_gated_residual, cpu_gated_residual_adaln
from erw.kernels._cpu_linear import cpu_linear, weight_gradient
from erw.kernels._cpu_mlp import _gelu, cpu_mlp
from erw.models.sit import SiT
from erw.ops import FUSED, REFERENCE, for_cpu_compiler
from tiny import MODEL

PLAIN = {spec.name: spec.reference for spec in SPECS}
X, WIDE, ROW = (2, 5, 12), (48, 12), (2, 12)


def plain_mlp(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias):
    return F.linear(F.gelu(F.linear(x, fc1_weight, fc1_bias), approximate="tanh"), fc2_weight, fc2_bias)


def by_name(function, *names):
    return lambda *given: function(*given[: -len(names)], **dict(zip(names, given[-len(names) :], strict=True)))


FORMS = {
    "linear": (cpu_linear, F.linear, [X, WIDE, (48,)]),
    "mlp": (cpu_mlp, plain_mlp, [X, WIDE, (48,), (12, 48), (12,)]),
    "adaln": (
        by_name(cpu_adaln_modulate, "shift", "scale"),
        by_name(PLAIN["adaln_modulate"], "shift", "scale"),
        [X, ROW, ROW],
    ),
    "gated": (by_name(cpu_gated_residual, "gate"), by_name(PLAIN["gated_residual"], "gate"), [X, X, ROW]),
    "both": (
        by_name(cpu_gated_residual_adaln, "gate", "shift", "scale"),
        by_name(PLAIN["gated_residual_adaln"], "gate", "shift", "scale"),
        [X, X, ROW, ROW, ROW],
    ),
}
DTYPES = [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)]


def drawn(shapes, dtype):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def outcome(function, inputs):
    """Results, and gradients under weights that no two elements share."""
    outs = function(*inputs)
    outs = outs if isinstance(outs, tuple) else (outs,)
    weighed = sum((out * torch.linspace(-1, 2, out.numel(), dtype=torch.float64).view_as(out)).sum() for out in outs)
    return [*(out.detach() for out in outs), *torch.autograd.grad(weighed, inputs)]


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("name", FORMS)
def test_each_is_the_plain_one(name, dtype, tolerance):
    ours, plain, shapes = FORMS[name]
    inputs = drawn(shapes, dtype)
    exact = outcome(plain, [t.detach().double().requires_grad_() for t in inputs])
    for found, true in zip(outcome(ours, inputs), exact, strict=True):
        assert found.dtype == dtype and found.shape == true.shape
        assert (found - true).abs().max() <= tolerance * true.abs().max()


def test_the_residual_stream_stays_wide_and_what_matmuls_take_is_narrow():
    x, y, gate, shift, scale = drawn([X, X, ROW, ROW, ROW], torch.bfloat16)
    x = x.detach().float().requires_grad_()
    added, modulated = cpu_gated_residual_adaln(x, y, gate=gate, shift=shift, scale=scale)
    assert (added.dtype, modulated.dtype) == (torch.float32, torch.bfloat16)
    gradients = torch.autograd.grad(added.sum() + modulated.float().sum(), (x, y, gate, shift, scale))
    assert [g.dtype for g in gradients] == [torch.float32] + [torch.bfloat16] * 4


def test_far_from_zero_gelu_neither_overflows_nor_loses_its_slope():
    z = torch.tensor([-1e4, -20.0, 0.0, 20.0, 1e4])
    assert [t.tolist() for t in _gelu(z, z.dtype)] == [[0.0, 0.0, 0.0, 20.0, 1e4], [0.0, 0.0, 0.5, 1.0, 1.0]]


@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_matmuls_cast_under_autocast(name):
    ours, _, shapes = FORMS[name]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = outcome(ours, drawn(shapes, torch.float32))
    assert found[0].dtype == torch.bfloat16 and all(t.dtype == torch.float32 for t in found[1:])


@pytest.mark.parametrize("rows", [2048, 2049])
def test_a_large_weights_gradient_goes_by_a_transposed_copy_and_is_the_same(rows):
    gradient, x = (torch.randn(rows, 1024, generator=torch.Generator().manual_seed(s)).bfloat16() for s in (0, 1))
    found, exact = weight_gradient(gradient, x), gradient.float().t() @ x.float()
    assert (found - exact).abs().max() < 1e-2 * exact.abs().max()


def test_compiled_blocks_of_a_cpu_take_them_and_kernels_stay():
    model = SiT(MODEL)
    before = model.blocks[0].mlp.ops
    model.compile_blocks(torch.device("cpu"))
    ops = model.blocks[0].mlp.ops
    assert before is REFERENCE and model.blocks[0].ops is ops
    assert all(
        getattr(ops, name) is not getattr(REFERENCE, name)
        for name in ("adaln_linear", "gated_residual", "gated_residual_adaln", "mlp")
    )
    assert for_cpu_compiler(FUSED) == FUSED
    elsewhere = SiT(MODEL)
    elsewhere.compile_blocks(torch.device("cuda"))
    assert elsewhere.blocks[0].ops is REFERENCE


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_compiled_they_are_the_same(name):
    """The compiler keeps what the functions keep, and neither relays out nor folds away their own operations."""
    from erw.kernels._cpu_compiler import OPTIONS

    ours, plain, shapes = FORMS[name]
    inputs = drawn(shapes, torch.bfloat16)
    exact = outcome(plain, [t.detach().double().requires_grad_() for t in inputs])
    for found, true in zip(outcome(torch.compile(ours, dynamic=False, options=OPTIONS), inputs), exact, strict=True):
        assert (found - true).abs().max() <= 2e-2 * true.abs().max()


@pytest.mark.slow
def test_a_compiled_projector_is_the_same():
    projector = Projector(12, 24, 6)
    inputs = [*drawn([X], torch.float32), *projector.parameters()]
    plain = outcome(lambda x, *_: projector(x), inputs)
    projector.compile_on_cpu()
    for found, true in zip(outcome(lambda x, *_: projector(x), inputs), plain, strict=True):
        torch.testing.assert_close(found, true, rtol=1e-4, atol=1e-5)
