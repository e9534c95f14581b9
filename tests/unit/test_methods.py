"""Methods: phases, losses, and that alignment reaches every sample."""

import pytest
import torch

from erw import ops
from erw.align import METHODS as REGISTRY
from erw.align import Erw, Repa
from erw.build import build_step
from erw.errors import UserError
from erw.objectives.flow import Flow, interpolate
from erw.presets import preset
from erw.types import Phase, TeacherSpec
from tiny import BATCH, METHODS, MODEL, random_step_inputs, tiny

TEACHER = TeacherSpec(name="test", width=12, grid=4)


def test_every_method_is_registered_under_its_own_name():
    assert all(kind.__dataclass_fields__["name"].default == name for name, kind in REGISTRY.items())


def test_vectorised_cosine_equals_the_loop_over_samples():
    z, target = torch.randn(5, 7, 12), torch.randn(5, 7, 12)
    loop = [-sum(float(a @ b / a.norm() / b.norm()) for a, b in zip(zs, ts, strict=True)) / 7
            for zs, ts in zip(z, target, strict=True)]  # fmt: skip
    assert torch.allclose(ops.cosine_alignment(z, target), torch.tensor(loop), atol=1e-6)


def test_teacher_gets_no_gradient_and_halves_are_computed_in_fp32():
    z = torch.randn(2, 4, 8, dtype=torch.bfloat16, requires_grad=True)
    target = torch.randn(2, 4, 8, requires_grad=True)
    loss = ops.cosine_alignment(z, target)
    assert loss.dtype == torch.float32
    loss.sum().backward()
    assert target.grad is None and z.grad is not None


def test_phases_of_erw_begin_and_decay_where_they_should():
    method = Erw(depth=2, warmup_images=100, projection_depth=3, coefficient=0.8, decay="half-life", decay_images=50)
    assert method.phase(0) == method.phase(99) == Phase(name="warmup", denoise=False, depth=2, taps=(2,), coefficient=1.0)
    full = method.phase(100)
    assert (full.name, full.denoise, full.depth, full.taps, full.coefficient) == ("full", True, None, (3,), 0.8)
    assert method.phase(150).coefficient == pytest.approx(0.4)
    constant = Erw(depth=2, warmup_images=100, projection_depth=3, coefficient=0.8)
    assert constant.phase(10_000).coefficient == 0.8


def test_released_settings_halve_every_50k_steps():
    method = preset("in256-erw-xl2-released").method
    start = method.warmup_images
    assert (method.depth, method.projection_depth) == (4, 14)
    ratio = method.phase(start + 50_000 * 256).coefficient / method.phase(start).coefficient
    assert ratio == pytest.approx(0.5)


def test_coefficient_zero_computes_nothing_of_the_method():
    assert not Repa(coefficient=0.0).needs_teacher
    assert Repa(coefficient=0.0).phase(0).taps == ()
    phase = Erw(depth=1, warmup_images=16, projection_depth=2, coefficient=0.0).phase(16)
    assert phase.taps == () and not phase.aligns


def sample_gradients(name: str, phase: Phase, tmp_path) -> torch.Tensor:
    """(B,) norm of the loss's gradient with respect to each sample's input."""
    config = tiny(name, tmp_path)
    step = build_step(config, phase)
    for p in step.parameters():
        torch.nn.init.normal_(p, std=0.2)
    x, *rest = random_step_inputs(config, phase)
    x.requires_grad_()
    losses = step(x, *rest)
    gradient = torch.autograd.grad(losses["align"], x)[0]
    return gradient.flatten(1).norm(dim=1)


@pytest.mark.parametrize(("name", "images"), [("repa", 0), ("erw", 0), ("erw", 3 * BATCH)])
def test_alignment_gradients_reach_every_sample(name, images, tmp_path):
    norms = sample_gradients(name, METHODS[name].phase(images), tmp_path)
    assert (norms > 1e-8).all() and norms.max() / norms.min() < 100


def test_warmup_holds_its_own_parameters_only(tmp_path):
    config = tiny("erw", tmp_path)
    names = {n for n, _ in build_step(config, config.method.phase(0)).named_parameters()}
    assert any(n.startswith("model.blocks.0.") for n in names) and any(n.startswith("heads.projectors.0.") for n in names)
    assert not any(n.startswith(("model.blocks.1.", "model.blocks.2.", "model.final_layer.")) for n in names)


def test_every_warmup_parameter_gets_a_gradient(tmp_path):
    config = tiny("erw", tmp_path)
    phase = config.method.phase(0)
    step = build_step(config, phase)
    for p in step.parameters():
        torch.nn.init.normal_(p, std=0.1)
    step(*random_step_inputs(config, phase))["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in step.parameters())


def test_the_second_phase_starts_from_the_firsts_weights(tmp_path):
    config = tiny("erw", tmp_path)
    first = build_step(config, config.method.phase(0))
    trained = {n.split(".", 1)[1]: torch.randn_like(p) for n, p in first.named_parameters()}
    second = build_step(config, config.method.phase(config.method.warmup_images), trained)
    after = {n.split(".", 1)[1]: p for n, p in second.named_parameters()}
    assert all(torch.equal(after[n], w) for n, w in trained.items())
    # What phase 1 did not have starts as a run without warm-up starts it.
    fresh = build_step(config, config.method.phase(config.method.warmup_images))
    untouched = {n.split(".", 1)[1]: p for n, p in fresh.named_parameters() if n.split(".", 1)[1] not in trained}
    assert untouched and all(torch.equal(after[n], w) for n, w in untouched.items())


def test_rope_is_the_same_in_both_phases(tmp_path):
    config = tiny("erw", tmp_path, model={"rope": True})
    first = build_step(config, config.method.phase(0)).model
    second = build_step(config, config.method.phase(config.method.warmup_images)).model
    assert torch.equal(first.rope, second.rope) and first.rope.abs().sum() > 0


def test_heads_do_not_change_the_backbones_start(tmp_path):
    plain = build_step(tiny("sit", tmp_path), Phase(name="train")).model.state_dict()
    aligned = build_step(tiny("repa", tmp_path), METHODS["repa"].phase(0)).model.state_dict()
    assert all(torch.equal(plain[n], aligned[n]) for n in plain)


def test_a_weight_without_a_place_is_refused(tmp_path):
    config = tiny("sit", tmp_path)
    with pytest.raises(UserError, match="blocks.9.attn.qkv.weight"):
        build_step(config, Phase(name="train"), {"blocks.9.attn.qkv.weight": torch.zeros(1)})


def test_warmup_sees_clean_latents_at_time_zero():
    x, labels, index = torch.randn(6, 1, 8, 8), torch.arange(6), torch.arange(6)
    inputs = Flow(label_dropout=0.0).draw(METHODS["erw"].phase(0), 0, x, labels, index, null=10)
    assert torch.equal(inputs.x, x) and inputs.t.abs().sum() == 0 and inputs.target is None


def test_interpolant_ends_at_data_and_noise():
    x, noise = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
    at_data, target = interpolate(x, noise, torch.zeros(2))
    at_noise, _ = interpolate(x, noise, torch.ones(2))
    assert torch.equal(at_data, x) and torch.equal(at_noise, noise) and torch.equal(target, noise - x)


def test_label_dropout_hits_its_share_and_does_not_depend_on_the_split():
    index = torch.arange(4000)
    x, labels = torch.zeros(4000, 1, 2, 2), torch.zeros(4000, dtype=torch.long)
    config, phase = Flow(label_dropout=0.1), Phase(name="train")
    whole = config.draw(phase, 5, x, labels, index, null=10)
    assert abs((whole.y == 10).float().mean() - 0.1) < 0.02
    half = config.draw(phase, 5, x[2000:], labels[2000:], index[2000:], null=10)
    assert torch.equal(whole.y[2000:], half.y) and torch.equal(whole.t[2000:], half.t)
    assert torch.equal(whole.x[2000:], half.x)


@pytest.mark.parametrize(
    ("method", "says"),
    [
        (Repa(depth=9), "--method.depth 9 is not a block"),
        (Erw(depth=4, projection_depth=3, warmup_images=16), "--method.depth 4 is not a block"),
        (Erw(depth=2, projection_depth=1, warmup_images=16), "lies before the warm-up's end"),
        (Erw(depth=1, projection_depth=2, warmup_images=17), "multiple of --train.batch 16"),
        (Erw(depth=1, projection_depth=2, warmup_images=0), "and not 0"),
    ],
)
def test_depths_and_lengths_that_do_not_fit_are_refused(method, says):
    with pytest.raises(UserError, match=says):
        method.check(MODEL, (TEACHER,), BATCH)


def test_a_teacher_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match="gives 16x16 patches, the model has 4x4"):
        Repa(depth=1).check(MODEL, (TeacherSpec(name="big", width=12, grid=16),), BATCH)
    with pytest.raises(UserError, match="needs a teacher"):
        Repa(depth=1).check(MODEL, (), BATCH)
