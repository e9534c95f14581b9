"""The optimizer as a loop without kernels of its own has it: torch's AdamW, clip_grad_norm_, an EMA in Python."""

import torch
from torch import Tensor, nn

from erw.optim import OptimConfig


class PlainAdamW:
    """``step()`` over fp32 ``weights``, ``used`` being what forward and backward use; the EMA is updated a parameter at a
    time."""

    def __init__(self, weights: dict[str, Tensor], used: list[Tensor], optim: OptimConfig, ema_decay: float):
        self.used, self.masters = used, list(weights.values())
        for weight in self.masters:
            weight.grad = torch.zeros_like(weight)
        self.weights, self.clip, self.ema_decay = weights, optim.clip, ema_decay
        self.ema = {name: weight.detach().clone() for name, weight in weights.items()}
        # No fused or foreach argument, as in the reference step.
        self.adamw = torch.optim.AdamW(
            weights.values(), lr=optim.lr, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay
        )
        self.grad_norm: Tensor | None = None

    def step(self) -> None:
        """Clip, AdamW, EMA."""
        torch._foreach_copy_([weight.grad for weight in self.masters], [weight.grad for weight in self.used])
        self.grad_norm = nn.utils.clip_grad_norm_(self.weights.values(), self.clip)
        self.adamw.step()
        with torch.no_grad():
            torch._foreach_copy_(self.used, self.masters)
            for name, weight in self.weights.items():
                self.ema[name].mul_(self.ema_decay).add_(weight, alpha=1 - self.ema_decay)
