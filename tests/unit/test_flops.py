"""FLOPs: the closed form against torch's own counter, and against the DiT paper."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from erw.align import Erw, Plain, Repa
from erw.build import build_step
from erw.flops import cached_share, forward_flops, online_share, train_flops
from erw.models.sit import sized
from erw.types import Phase
from tiny import random_step_inputs, tiny


@pytest.mark.parametrize(("size", "gmacs"), [("XL/2", 118.64), ("L/2", 80.71), ("B/2", 23.01)])
def test_forward_matches_the_dit_papers_table(size, gmacs):
    assert forward_flops(sized(size)) / 2e9 == pytest.approx(gmacs, rel=0.01)


@pytest.mark.parametrize("method", [Plain(), Repa(depth=2, projector_width=192),
                                    Erw(depth=2, warmup_images=256, projection_depth=3, projector_width=192)])  # fmt: skip
@pytest.mark.parametrize("images", [0, 10_000])
def test_a_training_image_matches_torchs_counter(method, images, tmp_path):
    teacher = {"name": "digits-contrastive" if method.needs_teacher else "none"}
    config = tiny("sit", tmp_path, model={"depth": 4, "width": 128, "num_heads": 4}, teacher=teacher)
    config = replace(config, method=method)
    phase = method.phase(images)
    step = build_step(config, phase)
    for p in step.parameters():  # at its zero initialisation a model has no gradients to count
        torch.nn.init.normal_(p, std=0.02)
    count = 4
    inputs = random_step_inputs(config, phase, count)
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        step(*inputs)["loss"].backward()
    counted = counter.get_total_flops() / count
    assert train_flops(config.model, method, phase, config.teacher_specs) == pytest.approx(counted, rel=0.01)


def test_published_training_figures():
    xl = sized("XL/2")
    assert train_flops(xl, Plain(), Phase(name="train"), ()) / 1e9 == pytest.approx(711.7, rel=1e-3)


def test_a_cache_is_paid_once_and_online_every_time():
    assert cached_share(100, 1000, 5000) == 20
    assert cached_share(100, 1000, 500) == 100
    assert online_share(100, 1, 8) == online_share(100, 8, 8) == 100
    assert online_share(100, 64, 16) == 400
