"""Our training step as a bare loop on one device: the parts that the engine wraps, without DeepSpeed.

Weights of the setup's dtype for forward and backward; fp32 masters, moments and EMA in the optimizer. It does the same work
as `ReferenceStep`: posterior sample, draws, forward, backward, clip, AdamW, EMA.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from erw.bench._graph import Graphed
from erw.bench._ladder import Setup
from erw.bench._plain_adamw import PlainAdamW
from erw.bench._scene import Scene
from erw.bench._weights import draw_weights
from erw.engine.heap import keep_freed_memory
from erw.kernels.attention import attention_backend
from erw.latents import LatentConfig, VaeLatents
from erw.models.sit import SiT
from erw.objectives.flow import Flow
from erw.ops import FUSED, REFERENCE, OpSet
from erw.optim import AdamWEMA, OptimConfig, param_groups
from erw.step import TrainStep
from erw.types import Targets

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def looped_alignment(z: Tensor, target: Tensor) -> Tensor:
    """``cosine_alignment`` as the published code writes it, a sample at a time: (B, T, F) twice to (B,) fp32."""
    found = []
    for student, teacher in zip(z.float(), target.float(), strict=True):
        student, teacher = F.normalize(student, dim=-1), F.normalize(teacher, dim=-1)
        found.append(-(teacher * student).sum(dim=-1).mean())
    return torch.stack(found)


def ops_of(setup: Setup) -> OpSet:
    """The op set of ``setup``, whose attention has a name. Raises ImportError for a backend whose package is missing."""
    ops = replace(REFERENCE, cosine_alignment=looped_alignment) if setup.loss == "loop" else REFERENCE
    fused = (*setup.fused, "modulations") if setup.batched_modulation else setup.fused
    ops = replace(ops, **{name: getattr(FUSED, name) for name in fused})
    return ops if setup.attention == "sdpa" else replace(ops, attention=attention_backend(setup.attention))


class Training:
    """What both loops train: ``module``, a `TrainStep` with fp32 weights on ``device``, and its inputs from a batch."""

    def __init__(self, setup: Setup, scene: Scene, device: torch.device, seed: int = 0):
        config = replace(scene.config, residual_dtype=setup.residual)
        method, phase = scene.training(setup.phase)
        ops = ops_of(setup)
        with device:
            model = SiT(config, ops)
            heads = method.build_heads(config, (scene.teacher,))
            self.index = torch.arange(scene.batch)
        if phase.depth is not None:
            model.keep_span(phase.first, phase.depth)
        model.recompute = setup.recompute
        # The position tables are made on the host whatever the default device is.
        self.module = TrainStep(model, heads, method, Flow(), phase, ops).train().to(device)
        draw_weights(self.module)
        self.latents = VaeLatents(LatentConfig(kind="vae"))
        self.seed, self.null = seed, config.num_classes
        if setup.compile:
            self.module.compile_parts(device)

    def inputs(self, moments: Tensor, labels: Tensor, features: Tensor) -> tuple:
        """Arguments of ``module`` for moments (B, 2C, S, S) fp32, labels (B,), features (B, T, F); the stream moves on."""
        step, index = self.module, self.index
        latents = self.latents.draw(moments, self.seed, index)
        given = step.objective.draw(step.phase, self.seed, latents, labels, index, self.null)
        index += index.numel()
        return given.x, given.t, given.y, given.target, Targets((features,))


class OurStep:
    """``step(moments, labels, features)``: one whole training step. Returns its losses, and the gradient's norm where the
    setup reads them back: floats there, else 0-d tensors that nobody has waited for."""

    def __init__(self, setup: Setup, scene: Scene, device: torch.device):
        optim, self.host_reads = OptimConfig(), setup.host_reads
        if device.type == "cpu":
            keep_freed_memory()  # as the engine does; of the whole process, so the reference has it too
        self.training = Training(setup, scene, device)
        self.module = self.training.module
        named = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        self.parameters = list(named.values())
        masters = {name: p.detach().clone().requires_grad_() for name, p in named.items()}
        self.masters = list(masters.values())
        self.module.to(DTYPES[setup.precision])
        decay = optim.ema_decay(scene.batch)
        self.optimizer = (
            PlainAdamW(masters, self.parameters, optim, decay)
            if setup.optimizer == "torch"
            else _adamw_ema(self.masters, self.parameters, optim, decay, setup.compile)
        )
        self.forward = Graphed(self.module) if setup.graph else self.module

    def __call__(self, moments: Tensor, labels: Tensor, features: Tensor) -> dict[str, Tensor] | dict[str, float]:
        """moments (B, 2C, S, S) fp32, labels (B,) int64, features (B, T, F), all on the device."""
        losses = self.forward(*self.training.inputs(moments, labels, features))
        losses["loss"].backward()
        self.optimizer.step()
        self.module.zero_grad(set_to_none=True)
        found = {name: value.detach() for name, value in losses.items()}
        if not self.host_reads:
            return found
        return {name: value.item() for name, value in (found | {"grad_norm": self.optimizer.grad_norm}).items()}


def _adamw_ema(masters: list[Tensor], weights: list[Tensor], optim: OptimConfig, ema_decay: float, compiled: bool) -> AdamWEMA:
    return AdamWEMA(
        param_groups(masters, optim.weight_decay),
        lr=optim.lr,
        betas=optim.betas,
        eps=optim.eps,
        ema_decay=ema_decay,
        max_norm=optim.clip,
        compiled=compiled,
        halves=dict(zip(masters, weights, strict=True)),
    )
