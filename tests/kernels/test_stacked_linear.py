"""All blocks' modulation as one batched matmul."""

import pytest
import torch
import torch.nn.functional as F

from erw.kernels.stacked_linear import stacked, stacked_linear
from erw.ops import FUSED, REFERENCE

COUNT, B, D, E = 3, 4, 6, 10


def drawn(dtype=torch.float64, flat: bool = False):
    """x, weights, biases; ``flat``: as slices of one buffer with something else between, as ZeRO lays them."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(B, D, generator=generator, dtype=torch.float64).to(dtype)
    rows = torch.randn(COUNT, E * D + E + 5, generator=generator, dtype=torch.float64).to(dtype)
    weights, biases = [row[: E * D].view(E, D) for row in rows], [row[E * D : E * D + E] for row in rows]
    return x, *([t if flat else t.clone() for t in group] for group in (weights, biases))


@pytest.mark.parametrize("flat", [True, False])
def test_it_equals_separate_linears(flat):
    x, weights, biases = drawn(flat=flat)
    leaves = [t.detach().requires_grad_() for t in (x, *weights, *biases)]
    if flat:
        assert stacked(leaves[1 : 1 + COUNT]).untyped_storage().data_ptr() == weights[0].untyped_storage().data_ptr()
    outs = stacked_linear(leaves[0], leaves[1 : 1 + COUNT], leaves[1 + COUNT :])
    exact = [F.linear(leaves[0], w, b) for w, b in zip(leaves[1 : 1 + COUNT], leaves[1 + COUNT :], strict=True)]
    douts = [torch.randn_like(out) for out in exact]
    for ours, theirs in zip(outs, exact, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(torch.autograd.grad(outs, leaves, douts), torch.autograd.grad(exact, leaves, douts), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def test_what_is_not_used_gets_no_gradient():
    x, weights, biases = drawn()
    weights = [w.requires_grad_() for w in weights]
    outs = stacked_linear(x, weights, biases)
    first, last = torch.autograd.grad(outs[0].sum(), [weights[0], weights[-1]])
    assert first.abs().sum() > 0 and last.abs().sum() == 0


def test_tensors_are_copied_together_only_where_they_must_be():
    buffer = torch.arange(30.0)
    even, uneven = [buffer[i : i + 4].view(2, 2) for i in (0, 10, 20)], [buffer[i : i + 4].view(2, 2) for i in (0, 9, 20)]
    turned, apart = [t.T for t in even], [t.clone() for t in even]
    for tensors, view in (
        (even, True),
        (uneven, False),
        (turned, False),
        (apart, False),
        (even[::-1], False),
        (even[:1], True),
    ):
        found = stacked(tensors)
        assert torch.equal(found, torch.stack(tensors))
        assert (found.untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr()) == view


def test_under_autocast_it_gives_what_a_linear_gives():
    x, weights, biases = drawn(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(out.dtype == torch.bfloat16 for out in stacked_linear(x, weights, biases))


def test_shapes_that_differ_are_named():
    x, weights, biases = drawn()
    with pytest.raises(ValueError, match="weight and bias 1 have shapes"):
        stacked_linear(x, [weights[0], weights[1].T, weights[2]], biases)
    with pytest.raises(ValueError, match="weights are 3, biases 2"):
        stacked_linear(x, weights, biases[:2])


def test_the_op_sets_agree():
    layers = [torch.nn.Sequential(torch.nn.SiLU(), torch.nn.Linear(D, 6 * D)) for _ in range(COUNT)]
    c = torch.randn(B, D)
    for ours, plain in zip(FUSED.modulations(c, layers), REFERENCE.modulations(c, layers), strict=True):
        assert torch.allclose(ours, plain, atol=1e-6)
