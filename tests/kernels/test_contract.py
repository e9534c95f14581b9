"""Every kernel against its contract (see `contract`), looped over the SPECS. On a CPU through Triton's interpreter."""

from dataclasses import replace

import pytest
import torch

from erw.kernels import SPECS, Case
from erw.kernels._launch import INTERPRETED
from erw.kernels.contract import broken, drawn, faults, outcome, sizes, small, variants

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason="needs a CUDA device or TRITON_INTERPRET=1")
each_spec = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)


@pytest.mark.parametrize(
    ("spec", "variant", "dtypes"),
    [pytest.param(s, *tried, id="-".join((s.name, *tried))) for s in SPECS for tried in variants(s, DEVICE)],
)
def test_outputs_and_gradients_keep_the_contract(spec, variant, dtypes):
    for case in sizes(spec, DEVICE):
        broken = faults(spec, case, dtypes, spec.options[variant], DEVICE)
        assert not broken, f"{case}: " + "; ".join(map(str, broken))


@each_spec
def test_each_output_may_be_the_only_one_used(spec):
    options = next(iter(spec.options.values()))
    returned = spec.op(**drawn(spec, small(spec), "mixed", DEVICE), **options)
    if not spec.grads or not isinstance(returned, tuple):
        pytest.skip("has one output, or no gradients")
    for number in range(len(returned)):
        alone = replace(spec, op=_only(spec.op, number), reference=_only(spec.reference, number))
        assert not faults(alone, small(spec), "mixed", options, DEVICE)


def _only(op, number):
    """``op`` of whose outputs nothing but that ``number`` is used."""
    return lambda **given: op(**given)[number]


@each_spec
def test_twice_gives_the_same_bits(spec):
    options = next(iter(spec.options.values()))
    inputs = drawn(spec, small(spec), "mixed", DEVICE)
    first, second = (outcome(spec, spec.op, inputs, options) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@each_spec
def test_an_empty_batch_gives_empty_results(spec):
    options = next(iter(spec.options.values()))
    inputs = drawn(spec, Case(batch=0, tokens=4, width=64, heads=4), "fp32", DEVICE)
    found = outcome(spec, spec.op, inputs, options)
    exact = outcome(spec, spec.reference, inputs, options)
    assert {n: t.shape for n, t in found.items()} == {n: t.shape for n, t in exact.items()}


@each_spec
def test_inputs_and_gradients_need_not_be_contiguous(spec):
    options = next(iter(spec.options.values()))
    inputs = drawn(spec, small(spec), "fp32", DEVICE)
    strided = {name: _strided(t) for name, t in inputs.items()}
    plain, found = outcome(spec, spec.op, inputs, options), outcome(spec, spec.op, strided, options)
    assert all(torch.equal(plain[name], found[name]) for name in plain)
    plain, found = (_through(spec, inputs, options, transposed) for transposed in (False, True))
    assert all(torch.equal(plain[name], found[name]) for name in plain)


def _strided(tensor):
    """The same values with gaps between rows."""
    if tensor.dim() < 2:
        return tensor
    wide = torch.zeros((*tensor.shape[:-1], 3 * tensor.shape[-1]), dtype=tensor.dtype, device=tensor.device)
    return wide[..., tensor.shape[-1] : 2 * tensor.shape[-1]].copy_(tensor)


def _through(spec, inputs, options, transposed: bool) -> dict:
    """Gradients when the outputs' gradients come contiguous, or transposed in memory."""

    def op(**given):
        returned = spec.op(**given)
        outs = returned if isinstance(returned, tuple) else (returned,)
        return tuple(_Gradient.apply(out, transposed) for out in outs)

    return outcome(spec, op, inputs, options)


class _Gradient(torch.autograd.Function):
    """Identity whose gradient lies transposed in memory."""

    @staticmethod
    def forward(ctx, x, transposed):
        ctx.transposed = transposed
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        if ctx.transposed and gradient.dim() > 1:
            gradient = gradient.transpose(-1, -2).contiguous().transpose(-1, -2)
        return gradient, None


@each_spec
def test_checkpointing_and_autocast_change_nothing(spec):
    from torch.utils.checkpoint import checkpoint

    options = next(iter(spec.options.values()))
    inputs = drawn(spec, small(spec), "mixed", DEVICE)

    def again(**given):
        return checkpoint(lambda kwargs: spec.op(**kwargs), given, use_reentrant=False)

    def under_autocast(**given):
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            return spec.op(**given)

    plain = outcome(spec, spec.op, inputs, options)
    for wrapped in (again, under_autocast):
        found = outcome(spec, wrapped, inputs, options)
        assert all(torch.equal(plain[name], found[name]) for name in plain)


@each_spec
def test_the_library_registration_holds(spec):
    """`torch.library.opcheck` on the operators that a call runs: schema, fakes, autograd registration."""
    from torch.utils._python_dispatch import TorchDispatchMode

    calls = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.namespace == "erw":
                calls.append((func, [a.detach().clone() if isinstance(a, torch.Tensor) else a for a in args]))
            return func(*args, **(kwargs or {}))

    options = next(iter(spec.options.values()))
    inputs = drawn(spec, Case(batch=2, tokens=8, width=32, heads=2), "fp32", DEVICE)
    with Watch():
        outcome(spec, spec.op, inputs, options)
    assert calls
    for func, args in calls:
        torch.library.opcheck(func, args, test_utils=("test_schema", "test_faketensor", "test_autograd_registration"))


@each_spec
def test_torch_compile_takes_it_whole(spec):
    options = next(iter(spec.options.values()))
    inputs = drawn(spec, Case(batch=2, tokens=8, width=64, heads=2), "fp32", DEVICE)
    compiled = torch.compile(spec.op, fullgraph=True, backend="inductor" if DEVICE == "cuda" else "aot_eager")
    plain, found = outcome(spec, spec.op, inputs, options), outcome(spec, compiled, inputs, options)
    assert all(torch.equal(plain[name], found[name]) for name in plain)


@each_spec
def test_differentiating_twice_is_refused_clearly(spec):
    if not spec.grads:
        pytest.skip("has no gradients")
    options = next(iter(spec.options.values()))
    inputs = drawn(spec, Case(batch=2, tokens=8, width=32, heads=2), "fp32", DEVICE)
    leaf = inputs[spec.grads[0]].requires_grad_()
    returned = spec.op(**inputs, **options)
    out = returned[0] if isinstance(returned, tuple) else returned
    (gradient,) = torch.autograd.grad(out.square().sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="autograd|differentiate"):
        gradient.square().sum().backward()


@each_spec
def test_a_wrong_dtype_or_device_is_named(spec):
    options = next(iter(spec.options.values()))
    name = next(iter(spec.roles))
    inputs = drawn(spec, Case(batch=2, tokens=8, width=32, heads=2), "fp32", DEVICE)
    with pytest.raises(ValueError, match=f"{name} is torch.float64, should be"):
        spec.op(**inputs | {name: inputs[name].double()}, **options)
    name = list(spec.roles)[-1]
    with pytest.raises(ValueError, match=f"{name} has shape .*, should be"):
        spec.op(**inputs | {name: inputs[name].unsqueeze(0).unsqueeze(0)}, **options)


def test_what_is_broken_on_a_device_is_named(monkeypatch):
    good = next(spec for spec in SPECS if spec.name == "gated_residual")

    def wrong(**given):
        return good.op(**given) * 1.001

    def raising(**given):
        raise RuntimeError("no PTX for this chip\nand more")

    specs = (good, replace(good, name="wrong", op=wrong), replace(good, name="raising", op=raising))
    monkeypatch.setattr("erw.kernels.SPECS", specs)
    found = broken(small(good), "mixed", DEVICE)
    assert found[-1] == "raising: no PTX for this chip" and len(found) > 1
    assert all(line.startswith("wrong: ") and "exceeds" in line for line in found[:-1])
