"""Our training step as a bare loop on one device: the parts that the engine wraps, without DeepSpeed.

bf16 weights for forward and backward, fp32 master weights, moments and EMA in `AdamWEMA`, which also clips and skips
non-finite steps on the device. It does the same work as `ReferenceStep`: posterior sample, draws, forward, backward,
clip, AdamW, EMA. Nothing is read back to the host.
"""

import torch
from torch import Tensor

from erw.align.repa import Repa
from erw.latents import LatentConfig, VaeLatents
from erw.models.sit import SiT, SiTConfig
from erw.objectives.flow import Flow
from erw.ops import REFERENCE, OpSet
from erw.optim import AdamWEMA, OptimConfig, param_groups
from erw.step import TrainStep
from erw.types import Targets, TeacherSpec


class OurStep:
    """``step(moments, labels, features)``: one whole training step; returns its losses as 0-d tensors.

    dtype    of the weights in forward and backward; masters are fp32
    compile  torch.compile of each block, in place
    ops      what the blocks and losses are made of (`erw.ops.resolve`)
    """

    def __init__(
        self,
        config: SiTConfig,
        *,
        device: torch.device,
        encoder_depth: int,
        feature_width: int,
        batch: int,
        dtype: torch.dtype = torch.bfloat16,
        compile: bool = False,
        ops: OpSet = REFERENCE,
        seed: int = 0,
    ):
        method = Repa(depth=encoder_depth)
        optim = OptimConfig()
        with device:
            model = SiT(config, ops)
            heads = method.build_heads(config, (TeacherSpec(name="cached", width=feature_width, grid=config.grid),))
            self.index = torch.arange(batch)
        self.module = TrainStep(model, heads, method, Flow(), method.phase(0), ops).train()
        self.parameters = [p for p in self.module.parameters() if p.requires_grad]
        self.masters = [p.detach().clone().requires_grad_() for p in self.parameters]
        for master in self.masters:
            master.grad = torch.zeros_like(master)
        # The position tables are made on the host whatever the default device is.
        self.module.to(device=device, dtype=dtype)
        self.optimizer = AdamWEMA(
            param_groups(self.masters, optim.weight_decay),
            lr=optim.lr,
            betas=optim.betas,
            eps=optim.eps,
            ema_decay=optim.ema_decay(batch),
            max_norm=optim.clip,
        )
        self.latents = VaeLatents(LatentConfig(kind="vae"))
        self.seed, self.null = seed, config.num_classes
        if compile:
            for block in model.blocks:
                block.compile(dynamic=False)

    def __call__(self, moments: Tensor, labels: Tensor, features: Tensor) -> dict[str, Tensor]:
        """moments (B, 2C, S, S) fp32, labels (B,) int64, features (B, T, F), all on the device."""
        latents = self.latents.draw(moments, self.seed, self.index)
        given = self.module.objective.draw(self.module.phase, self.seed, latents, labels, self.index, self.null)
        losses = self.module(given.x, given.t, given.y, given.target, Targets((features,)))
        losses["loss"].backward()
        torch._foreach_copy_([m.grad for m in self.masters], [p.grad for p in self.parameters])
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.masters)
        self.module.zero_grad(set_to_none=True)
        self.index += self.index.numel()
        return {name: value.detach() for name, value in losses.items()}
