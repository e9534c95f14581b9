"""The reference step is what it says: the published arithmetic, trained by the published loop."""

import copy

import pytest
import torch
from torch import nn

from erw import ops
from erw.align.repa import Repa
from erw.bench.reference import (
    LATENT_SCALE,
    ReferenceSiT,
    alignment_loop,
    reference_losses,
    sample_posterior,
    update_ema,
)
from erw.bench.reference_step import ReferenceStep
from erw.models.sit import SiT, SiTConfig
from erw.objectives import Flow
from erw.step import TrainStep, public_name
from erw.types import TeacherSpec

CPU = torch.device("cpu")
CONFIG = SiTConfig(depth=2, width=32, num_heads=2, input_size=8, num_classes=5)
SHAPE = {"encoder_depth": 1, "feature_width": 12}


def make_batch(samples: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    moments = torch.randn(samples, 8, 8, 8, generator=generator).abs() / LATENT_SCALE
    labels = torch.arange(samples) % 5
    return moments, labels, torch.randn(samples, 16, 12, generator=generator)


def test_alignment_loop_equals_the_vectorised_cosine():
    generator = torch.Generator().manual_seed(0)
    students = [torch.randn(3, 7, 5, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)]
    students[1].data.copy_(students[0].data)
    teacher = torch.randn(3, 7, 5, generator=generator, dtype=torch.float64)
    looped, vectorised = alignment_loop(students[0], teacher), ops.REFERENCE.cosine_alignment(students[1], teacher).mean()
    looped.backward()
    vectorised.backward()
    torch.testing.assert_close(looped, vectorised, rtol=1e-12, atol=0)
    torch.testing.assert_close(students[0].grad, students[1].grad, rtol=1e-10, atol=1e-14)
    # A student that points with the teacher, whatever its length, has reached the minimum.
    assert alignment_loop(3 * teacher, teacher).item() == pytest.approx(-1.0, abs=1e-12)


def test_ema_loop_follows_the_formula_by_name():
    class Wrapped(nn.Module):
        def __init__(self, inner: nn.Module):
            super().__init__()
            self.module = inner

    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    ema, start = copy.deepcopy(model), copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.data += 1.0
    for _ in range(3):
        update_ema(ema, Wrapped(model), decay=0.9)
    # After n steps towards a fixed target the distance left is decay^n of the first one.
    for averaged, first in zip(ema.parameters(), start.parameters(), strict=True):
        torch.testing.assert_close(averaged, first + (1 - 0.9**3))


def test_parameter_names_and_shapes_are_ours():
    method = Repa(depth=1)
    heads = method.build_heads(CONFIG, (TeacherSpec(name="x", width=12, grid=CONFIG.grid),))
    ours = TrainStep(SiT(CONFIG), heads, method, Flow(), method.phase(0)).state_dict()
    theirs = ReferenceSiT(CONFIG, **SHAPE).state_dict()
    assert {public_name(name): value.shape for name, value in ours.items()} == {n: v.shape for n, v in theirs.items()}


def test_posterior_sample_is_scaled_mean_plus_noise():
    mean = torch.full((2, 4, 64, 64), 3.0)
    still = sample_posterior(torch.cat([mean, torch.zeros_like(mean)], dim=1))
    torch.testing.assert_close(still, mean * LATENT_SCALE)
    torch.manual_seed(0)
    spread = sample_posterior(torch.cat([mean, torch.full_like(mean, 2.0)], dim=1)).std().item()
    assert spread == pytest.approx(2.0 * LATENT_SCALE, rel=0.02)


@pytest.mark.parametrize(("dropout", "training", "rows"), [(1.0, True, {5}), (0.0, True, {1, 2}), (1.0, False, {1, 2})])
def test_label_dropout_happens_in_the_model_and_in_training_only(dropout, training, rows):
    model = ReferenceSiT(CONFIG, label_dropout=dropout, **SHAPE).train(training)
    model.y_embedder(torch.tensor([1, 2, 1])).sum().backward()
    gradient = model.y_embedder.embedding_table.weight.grad
    assert set(gradient.abs().sum(dim=1).nonzero().flatten().tolist()) == rows


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_step_lowers_the_loss_on_a_fixed_batch(precision):
    torch.manual_seed(0)
    model = ReferenceSiT(CONFIG, **SHAPE)
    step = ReferenceStep(model, device=CPU, precision=precision, learning_rate=1e-3, ema_decay=0.5)
    before = copy.deepcopy(step.ema.state_dict())
    seen = []
    for _ in range(12):
        torch.manual_seed(7)  # The same noise, t and label drop each time.
        seen.append(step(*make_batch()))
    assert all(isinstance(value, float) for value in seen[-1].values())
    assert seen[-1]["loss"] < 0.9 * seen[0]["loss"]
    assert seen[-1]["alignment"] < seen[0]["alignment"] - 0.05
    moved = {name for name, value in step.ema.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == before.keys() - {"pos_embed"}


def test_bf16_autocasts_matmuls_over_fp32_weights_and_gives_the_losses_fp32():
    step = ReferenceStep(ReferenceSiT(CONFIG, **SHAPE), device=CPU, precision="bf16")
    seen = {}
    step.model.blocks[0].attn.qkv.register_forward_hook(lambda m, a, out: seen.update(qkv=out.dtype))
    velocity, projected = step.forward(torch.randn(2, 4, 8, 8), torch.rand(2), y=torch.tensor([0, 1]))
    assert seen["qkv"] == torch.bfloat16
    assert {velocity.dtype, projected[0].dtype} == {torch.float32}
    assert {p.dtype for p in step.model.parameters()} == {torch.float32}


def test_gradients_reach_the_optimizer_clipped():
    step = ReferenceStep(ReferenceSiT(CONFIG, **SHAPE), device=CPU, precision="fp32", max_norm=1e-3)
    norms, plain = [], step.optimizer.step

    def recording(*args, **kwargs):
        gradients = [p.grad.flatten() for p in step.model.parameters() if p.grad is not None]
        norms.append(torch.cat(gradients).norm().item())
        return plain(*args, **kwargs)

    step.optimizer.step = recording
    numbers = step(*make_batch())
    assert numbers["grad_norm"] > 1e-2
    assert norms == [pytest.approx(1e-3, rel=1e-2)]
    assert all(p.grad is None for p in step.model.parameters())


def test_fp16_scales_the_loss_as_published():
    step = ReferenceStep(ReferenceSiT(CONFIG, **SHAPE), device=CPU, precision="fp16")
    assert step.scaler.is_enabled()
    assert (step.scaler.get_scale(), step.scaler.get_growth_interval()) == (65536.0, 2000)
    assert not ReferenceStep(ReferenceSiT(CONFIG, **SHAPE), device=CPU, precision="bf16").scaler.is_enabled()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="fp16 autocast is run on a CUDA device only; none here")
def test_fp16_step_runs_on_a_gpu():
    device = torch.device("cuda")
    step = ReferenceStep(ReferenceSiT(CONFIG, **SHAPE), device=device, precision="fp16", learning_rate=1e-3)
    batch = [tensor.to(device) for tensor in make_batch()]
    losses = [step(*batch)["alignment"] for _ in range(20)]
    assert losses[-1] < losses[0]


def test_losses_at_zero_initialisation_are_the_known_ones():
    # Output 0 at the start: the velocity loss is the mean square of eps - x, 1 + var(x) in expectation.
    torch.manual_seed(0)
    config = SiTConfig(depth=1, width=32, num_heads=2, input_size=32, num_classes=5)
    latents, labels = torch.randn(8, 4, 32, 32), torch.zeros(8, dtype=torch.int64)
    model = ReferenceSiT(config, **SHAPE)
    per_sample, align = reference_losses(model, latents, labels, torch.randn(8, 256, 12))
    assert per_sample.shape == (8,)
    assert per_sample.mean().item() == pytest.approx(2.0, rel=0.03)
    assert -1 <= align.item() <= 1
