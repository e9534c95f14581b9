"""The MLP for a CPU's compiler: values and gradients are those of the plain one, whatever the dtype."""

import pytest
import torch
import torch.nn.functional as F

from erw.kernels._matmul_mlp import matmul_mlp
from erw.models.sit import SiT
from erw.ops import FUSED, REFERENCE, for_cpu_compiler
from tiny import MODEL


def plain(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias):
    return F.linear(F.gelu(F.linear(x, fc1_weight, fc1_bias), approximate="tanh"), fc2_weight, fc2_bias)


def drawn(dtype):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 5, 12), (48, 12), (48,), (12, 48), (12,)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def outcome(function, inputs, gradient):
    out = function(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, gradient.to(out.dtype))]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_it_is_the_plain_mlp(dtype, tolerance):
    inputs, gradient = drawn(dtype), torch.randn(2, 5, 12, dtype=torch.float64)
    exact = outcome(plain, [t.detach().double().requires_grad_() for t in inputs], gradient.to(dtype).double())
    for ours, true in zip(outcome(matmul_mlp, inputs, gradient), exact, strict=True):
        assert ours.dtype == dtype and (ours - true).abs().max() <= tolerance * true.abs().max()


def test_far_from_zero_it_neither_overflows_nor_loses_its_slope():
    from erw.kernels._matmul_mlp import _gelu

    z = torch.tensor([-1e4, -20.0, 0.0, 20.0, 1e4])
    assert [t.tolist() for t in _gelu(z)] == [[0.0, 0.0, 0.0, 20.0, 1e4], [0.0, 0.0, 0.5, 1.0, 1.0]]


def test_it_casts_under_autocast():
    inputs = drawn(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = outcome(matmul_mlp, inputs, torch.ones(2, 5, 12))
    assert found[0].dtype == torch.bfloat16 and all(t.dtype == torch.float32 for t in found[1:])


def test_compiled_blocks_of_a_cpu_take_it_and_kernels_stay():
    model = SiT(MODEL)
    before = model.blocks[0].mlp.ops
    model.compile_blocks()
    assert before is REFERENCE and model.blocks[0].mlp.ops.mlp is not REFERENCE.mlp
    assert for_cpu_compiler(FUSED) is FUSED
