"""From a setup to the training step that is timed."""

import importlib.util
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from erw.bench._ladder import Setup
from erw.bench._scene import Scene
from erw.bench._weights import draw_weights
from erw.bench.ours import OurStep
from erw.bench.published import Published
from erw.bench.reference import ReferenceSiT
from erw.bench.reference_step import ReferenceStep
from erw.clock import Stopwatch
from erw.kernels.attention import Problem, choose

Step = Callable[[Tensor, Tensor, Tensor], dict]
# Compiled variants of one block that torch keeps at once: rows of a scene, whose anchor must not be compiled anew for each.
_VARIANTS = 64


def unavailable(setup: Setup) -> str | None:
    """Why this machine cannot run ``setup``, as a row's status; None where it can."""
    if setup.engine and importlib.util.find_spec("deepspeed") is None:
        return "not measured: deepspeed is not installed"
    return None


def settled(setup: Setup, scene: Scene, device: torch.device) -> Setup:
    """``setup`` with its attention backend named: ``auto`` becomes the fastest on the scene's own problem; of compiled blocks
    on a CPU compiled, as `erw.settle` has it."""
    if setup.attention != "auto":
        return setup
    return replace(setup, attention=_fastest(attention_problem(scene, device), setup.compile and device.type == "cpu"))


def attention_problem(scene: Scene, device: torch.device) -> Problem:
    """One block's attention in bf16."""
    config = scene.config
    return Problem(scene.batch, config.num_heads, config.tokens, config.width // config.num_heads, torch.bfloat16, device)


@cache
def _fastest(problem: Problem, compiled: bool) -> str:
    stopwatch = Stopwatch(problem.device)

    def seconds(run: Callable[[], None]) -> float:
        run()
        return statistics.median(stopwatch(run, calls=4) for _ in range(5))

    return choose(problem, seconds, compiled)[0]


def build(setup: Setup, scene: Scene, device: torch.device, published: Published | None) -> Step:
    """The training step of a `settled` ``setup`` on ``device``. Weights are those of every other row (`draw_weights`)."""
    if setup.compile:
        torch._dynamo.config.recompile_limit = _VARIANTS
    if setup.engine:
        from erw.bench._engine_step import EngineStep  # here, so that the rest does without deepspeed

        return EngineStep(setup, scene, device)
    if setup.code == "ours":
        return OurStep(setup, scene, device)
    shape = {"encoder_depth": scene.encoder_depth, "feature_width": scene.feature_width}
    options = {"device": device, "precision": setup.precision, "compile": setup.compile}
    with device:
        if setup.code == "published":
            model, options["losses"] = published.model(scene.config, **shape), published.losses()
        else:
            model = ReferenceSiT(scene.config, **shape)
    draw_weights(model)
    return ReferenceStep(model, **options)
