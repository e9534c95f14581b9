"""The loop body around the reference model: one call is one whole training step, with what the published one pays."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from erw.bench.reference import AUTOCAST, Losses, Precision, reference_losses, sample_posterior, update_ema


class ReferenceStep:
    """``step(moments, labels, features)``: forward, backward, clip, AdamW, EMA; returns the three numbers it logs.

    model      fp32 weights, on ``device``; trained in place. ``(x, t, y)`` to (velocity, [projected])
    precision  autocast's dtype; fp16 scales the loss as accelerate does (65536, doubled after 2000 good steps)
    losses     the loss function; the published `SILoss` fits here too
    compile    torch.compile of the model, which the published code does not do
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        device: torch.device,
        precision: Precision = "fp16",
        losses: Losses = reference_losses,
        compile: bool = False,
        coefficient: float = 0.5,
        learning_rate: float = 1e-4,
        max_norm: float = 1.0,
        ema_decay: float = 0.9999,
    ):
        self.model = model.to(device).train()
        self.ema = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.losses, self.coefficient, self.max_norm, self.ema_decay = losses, coefficient, max_norm, ema_decay
        called = torch.compile(self.model, dynamic=False) if compile else self.model
        self.forward = autocast_forward(called, device.type, AUTOCAST[precision])
        # No fused or foreach argument: what torch picks for the published call is part of the comparison.
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=learning_rate, betas=(0.9, 0.999), weight_decay=0.0, eps=1e-8
        )
        self.scaler = torch.amp.GradScaler(device.type, init_scale=65536.0, growth_interval=2000, enabled=precision == "fp16")

    def __call__(self, moments: Tensor, labels: Tensor, features: Tensor) -> dict[str, float]:
        """moments (B, 2C, S, S) fp32, labels (B,) int64, features (B, T, F) fp32, all on the device."""
        latents = sample_posterior(moments)
        per_sample, alignment = self.losses(self.forward, latents, labels, features)
        denoising = per_sample.mean()
        self.scaler.scale(denoising + self.coefficient * alignment).backward()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.max_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        update_ema(self.ema, self.model, self.ema_decay)
        # Three host reads, as published: each waits for the device.
        return {"loss": denoising.detach().item(), "alignment": alignment.detach().item(), "grad_norm": norm.item()}


def autocast_forward(model: Callable, device_type: str, dtype: torch.dtype) -> Callable:
    """``model`` under autocast with its outputs back in fp32, which is how accelerate wraps a prepared model."""

    def forward(*args, **kwargs) -> tuple[Tensor, list[Tensor]]:
        with torch.autocast(device_type, dtype=dtype, enabled=dtype != torch.float32):
            velocity, projected = model(*args, **kwargs)
        return velocity.float(), [tokens.float() for tokens in projected]

    return forward
