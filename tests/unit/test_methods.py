"""Methods: phases, losses, and that alignment reaches every sample."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from erw import ops
from erw.align import METHODS as REGISTRY
from erw.align import Erw, Repa
from erw.build import build_step
from erw.errors import UserError
from erw.flops import block_flops, embed_flops, train_flops
from erw.presets import preset
from erw.step import public_name
from erw.teachers import TeacherConfig, teacher_specs
from erw.types import Phase, Targets, TeacherSpec
from tiny import BATCH, METHODS, MODEL, random_step_inputs, tiny

TEACHER = TeacherSpec(name="test", width=12, grid=4)


def test_every_method_is_registered_under_its_own_name():
    assert all(kind.__dataclass_fields__["name"].default == name for name, kind in REGISTRY.items())


def test_vectorised_cosine_equals_the_loop_over_samples():
    z, target = torch.randn(5, 7, 12), torch.randn(5, 7, 12)
    loop = [-sum(float(a @ b / a.norm() / b.norm()) for a, b in zip(zs, ts, strict=True)) / 7
            for zs, ts in zip(z, target, strict=True)]  # fmt: skip
    assert torch.allclose(ops.REFERENCE.cosine_alignment(z, target), torch.tensor(loop), atol=1e-6)


def test_teacher_gets_no_gradient_and_halves_are_computed_in_fp32():
    z = torch.randn(2, 4, 8, dtype=torch.bfloat16, requires_grad=True)
    target = torch.randn(2, 4, 8, requires_grad=True)
    loss = ops.REFERENCE.cosine_alignment(z, target)
    assert loss.dtype == torch.float32
    loss.sum().backward()
    assert target.grad is None and z.grad is not None


def test_phases_of_erw_begin_and_decay_where_they_should():
    method = Erw(depth=2, warmup_images=100, projection_depth=3, coefficient=0.8, decay="half-life", decay_images=50)
    assert method.phase(0) == method.phase(99) == Phase(name="warmup", denoise=False, depth=2, taps=(2,), coefficient=1.0)
    assert method.phase(100) == Phase(name="full", denoise=True, depth=None, taps=(3,), coefficient=0.8)
    assert method.phase(150).coefficient == pytest.approx(0.4)


def in_phase_two(kind: type, **settings) -> Callable[[float], Phase]:
    """Phases of a method by the images since the whole model began to train."""
    if kind is Erw:
        method = Erw(depth=1, warmup_images=100, projection_depth=2, coefficient=0.8, **settings)
        return lambda images: method.phase(100 + images)
    return Repa(depth=2, coefficient=0.8, **settings).phase


@pytest.mark.parametrize("kind", [Repa, Erw])
@pytest.mark.parametrize(
    ("decay", "weights"),
    [
        ("constant", (0.8, 0.8, 0.8, 0.8)),
        ("half-life", (0.8, 0.8 * 0.5**0.5, 0.4, 0.2)),
        ("exponential", (0.8, 0.8 * math.exp(-0.5), 0.8 / math.e, 0.8 / math.e**2)),
        ("cut-off", (0.8, 0.8, 0.0, 0.0)),
    ],
)
def test_the_weight_decays_from_the_images_that_the_whole_model_has_seen(kind, decay, weights):
    phase = in_phase_two(kind, decay=decay, decay_images=0.0 if decay == "constant" else 40)
    phases = [phase(images) for images in (0, 20, 40, 80)]
    assert [p.coefficient for p in phases] == pytest.approx(weights)
    assert len({(p.name, p.depth) for p in phases}) == 1
    # After the cut-off nothing of the method is computed.
    assert all(
        (p.taps, p.aligns) == (((2,), True) if weight else ((), False)) for p, weight in zip(phases, weights, strict=True)
    )


def test_the_warmup_does_not_decay():
    phase = Erw(depth=1, warmup_images=100, projection_depth=2, decay="cut-off", decay_images=40).phase
    assert {phase(images).coefficient for images in (0, 39, 40, 99)} == {1.0}


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


# ---- placement --------------------------------------------------------------------------------------------------------


@pytest.fixture
def placed(tmp_path):
    """Settings whose warm-up trains blocks 2 and 3 of 4."""
    config = tiny("erw", tmp_path, model={"depth": 4, "width": 128, "num_heads": 4})
    method = Erw(first=2, depth=3, warmup_images=3 * BATCH, projection_depth=3, projector_width=192)
    return replace(config, method=method)


def test_a_placed_warmup_holds_its_blocks_under_their_own_names_and_no_other(placed):
    step = build_step(placed, placed.method.phase(0))
    names = {n.split(".")[2] for n, _ in step.named_parameters() if n.startswith("model.blocks.")}
    others = {n.split(".")[1] for n, _ in step.named_parameters() if not n.startswith("model.blocks.")}
    assert names == {"1", "2"} and others == {"x_embedder", "t_embedder", "y_embedder", "projectors"}
    placed.method.check(placed.model, placed.teacher_specs, BATCH)


def test_a_placed_warmup_costs_its_two_blocks(placed):
    phase, model = placed.method.phase(0), placed.model
    heads = placed.method.head_flops(model, placed.teacher_specs)
    flops = train_flops(model, placed.method, phase, placed.teacher_specs)
    assert flops == 3 * (embed_flops(model) + 2 * block_flops(model) + heads)
    step = build_step(placed, phase)
    for p in step.parameters():  # at its zero initialisation a model has no gradients to count
        torch.nn.init.normal_(p, std=0.1)
    inputs, counter = random_step_inputs(placed, phase, count=4), FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        step(*inputs)["loss"].backward()
    assert flops == pytest.approx(counter.get_total_flops() / 4, rel=0.01)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in step.parameters())


def test_a_placed_warmup_computes_what_its_blocks_compute_in_the_whole_model(placed):
    phase = placed.method.phase(0)
    trained = build_step(placed, phase)
    for p in trained.parameters():
        torch.nn.init.normal_(p, std=0.1)
    weights = {public_name(n): p.detach() for n, p in trained.named_parameters()}
    whole = build_step(placed, placed.method.phase(3 * BATCH), weights)
    after = {public_name(n): p for n, p in whole.named_parameters()}
    assert all(torch.equal(after[n], w) for n, w in weights.items())
    # Blocks 1 and 4 start as the identity, so that the tap behind block 3 is the warm-up's.
    x, t, y, *_ = random_step_inputs(placed, phase)
    taps = [step.model(x, t, y, taps=(3,)).taps for step in (trained, whole)]
    torch.testing.assert_close(taps[0][3], taps[1][3])


# ---- several teachers -------------------------------------------------------------------------------------------------

OTHER = TeacherSpec(name="other", width=20, grid=4)


@pytest.mark.parametrize("align", ["cosine", "nt-xent", "nt-xent-in-image"])
def test_several_teachers_have_a_projector_each_and_the_loss_is_their_mean(align):
    method = Repa(depth=2, projector_width=24, align=align, group_images=4)
    heads = method.build_heads(MODEL, (TEACHER, OTHER))
    shapes = {n: tuple(p.shape) for n, p in heads.named_parameters() if n.endswith("4.weight")}
    assert shapes == {"projectors.0.4.weight": (12, 24), "projectors.1.4.weight": (20, 24)}
    taps = {2: torch.randn(4, MODEL.tokens, MODEL.width)}
    tokens = tuple(torch.randn(8, MODEL.tokens, spec.width) for spec in (TEACHER, OTHER))
    alone = []
    for projector, own in zip(heads.projectors, tokens, strict=True):
        single = torch.nn.Module()
        single.projectors = [projector]
        alone.append(method.loss(single, taps, Targets((own,), first=4), ops.REFERENCE))
    both = method.loss(heads, taps, Targets(tokens, first=4), ops.REFERENCE)
    torch.testing.assert_close(both, (alone[0] + alone[1]) / 2)
    both.sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in heads.parameters())


def test_the_flops_of_several_teachers_projectors_are_counted():
    method = Repa(depth=2, projector_width=24)
    alone = [method.head_flops(MODEL, (spec,)) for spec in (TEACHER, OTHER)]
    assert method.head_flops(MODEL, (TEACHER, OTHER)) == sum(alone)
    assert alone[0] == 2 * 16 * (32 * 24 + 24 * 24 + 24 * 12)
    costs = [train_flops(MODEL, method, method.phase(0), specs) for specs in ((TEACHER,), (TEACHER, OTHER))]
    assert costs[1] - costs[0] == 3 * alone[1]


# ---- settings that do not fit -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "says"),
    [
        (Repa(depth=9), "--method.depth 9 is not a block"),
        (Erw(depth=4, projection_depth=3, warmup_images=16), "--method.depth 4 is not a block"),
        (Erw(depth=2, projection_depth=1, warmup_images=16), "lies before the warm-up's end"),
        (Erw(depth=1, projection_depth=2, warmup_images=17), "multiple of --train.batch 16"),
        (Erw(depth=1, projection_depth=2, warmup_images=0), "and not 0"),
        (Erw(first=3, depth=2, projection_depth=2, warmup_images=16), "--method.first 3 lies behind --method.depth 2"),
        (Erw(first=0, depth=2, projection_depth=2, warmup_images=16), "--method.first 0 is not a block"),
        (Repa(depth=1, tau=0.0), "--method.tau must be above 0, not 0.0"),
        (Repa(depth=1, align="nt-xent", group_images=1), "--method.group_images must be at least 2"),
        (Repa(depth=1, decay="half-life"), "--method.decay half-life needs --method.decay_images above 0, not 0"),
        (Repa(depth=1, decay="cut-off", decay_images=-5), "--method.decay cut-off needs"),
        (Erw(depth=1, projection_depth=2, warmup_images=16, decay="exponential"), "--method.decay exponential needs"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(method, says):
    with pytest.raises(UserError, match=says) as refusal:
        method.check(MODEL, (TEACHER,), BATCH)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("digits-contrastive,digits-supervised,digits-contrastive", "names a teacher twice"),
        ("digits-contrastive,digits-supervize", "'digits-supervize' is not known; did you mean digits-supervised"),
        ("digits-contrastive,", "'' is not known"),
    ],
)
def test_teachers_that_cannot_be_are_refused_in_one_line(name, says):
    with pytest.raises(UserError, match=says) as refusal:
        teacher_specs(TeacherConfig(name=name))
    assert "\n" not in str(refusal.value)
    known = TeacherConfig(name="digits-supervised,digits-contrastive")
    assert tuple(spec.name for spec in teacher_specs(known)) == known.names


def test_a_teacher_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match="gives 16x16 patches, the model has 4x4"):
        Repa(depth=1).check(MODEL, (TEACHER, TeacherSpec(name="big", width=12, grid=16)), BATCH)
    with pytest.raises(UserError, match="needs a teacher"):
        Repa(depth=1).check(MODEL, (), BATCH)
