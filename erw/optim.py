"""AdamW that also keeps the exponential moving average (EMA) of the weights, as optimizer state.

Under ZeRO an optimizer owns a flat fp32 shard; the EMA is one more flat tensor beside ``exp_avg`` and ``exp_avg_sq``. It
costs 1/N of the memory, is updated in the same pass and is saved with the rest, at every stage.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from erw.errors import UserError
from erw.settings import setting

WEIGHTS = "weights"  # the fp32 masters, beside the optimizer's own state
STATE_KEYS = ("exp_avg", "exp_avg_sq", "ema")


def parse_half_life(text: str) -> float:
    """Images from a number, or from DECAY@BATCH as the papers put it (``0.9999@256``)."""
    decay, at, batch = text.partition("@")
    try:
        if not at:
            return float(text.replace("_", ""))
        return int(batch) * math.log(0.5) / math.log(float(decay))
    except (ValueError, ZeroDivisionError):
        raise UserError(f"--optim.ema_half_life takes images or DECAY@BATCH such as 0.9999@256, not '{text}'") from None


PAPER_EMA = parse_half_life("0.9999@256")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Settings of the optimizer. Defaults are those of SiT, REPA and ERW."""

    lr: float = setting(1e-4, "learning rate")
    lr_warmup_images: int = setting(0, "images over which the learning rate rises from 0, at the start of each phase")
    lr_schedule: Literal["constant", "linear", "cosine"] = setting("constant", "how the learning rate falls after that")
    lr_final: float = setting(0.0, "what it falls to at the end of each phase, as a share of lr")
    betas: tuple[float, ...] = setting((0.9, 0.999), "decay of the first and second moment")
    eps: float = setting(1e-8, "added to the root of the second moment")
    weight_decay: float = setting(0.0, "decoupled weight decay, on matrices only")
    clip: float = setting(1.0, "largest global gradient norm; 0 does not clip")
    ema_half_life: float = setting(PAPER_EMA, "half-life of the EMA in images, or DECAY@BATCH", parse=parse_half_life)

    def __post_init__(self):
        if self.lr <= 0:
            raise UserError(f"--optim.lr must be above 0, not {self.lr}")
        if len(self.betas) != 2 or not all(0 <= b < 1 for b in self.betas):
            raise UserError(f"--optim.betas takes two numbers in [0, 1), not {self.betas}")
        if not 0 <= self.lr_final <= 1:
            raise UserError(f"--optim.lr_final is a share of --optim.lr, in 0..1, not {self.lr_final}")
        if self.ema_half_life <= 0:
            raise UserError("--optim.ema_half_life must be above 0 images")

    def ema_decay(self, batch: int) -> float:
        """Decay of one step of ``batch`` images."""
        return 0.5 ** (batch / self.ema_half_life)

    def lr_at(self, images_into_phase: int, phase_images: int) -> float:
        """Learning rate of the step that starts ``images_into_phase`` images after its phase of ``phase_images`` began."""
        if images_into_phase < self.lr_warmup_images:
            return self.lr * images_into_phase / self.lr_warmup_images
        share = (images_into_phase - self.lr_warmup_images) / max(1, phase_images - self.lr_warmup_images)
        left = {"constant": 1.0, "linear": 1 - share, "cosine": 0.5 * (1 + math.cos(math.pi * share))}[self.lr_schedule]
        return self.lr * (self.lr_final + (1 - self.lr_final) * left)


def param_groups(parameters: Iterable[Tensor], weight_decay: float) -> list[dict]:
    """One group, or two (matrices with decay, the rest without) where there is any decay."""
    parameters = [p for p in parameters if p.requires_grad]
    if weight_decay == 0.0:
        return [{"params": parameters, "weight_decay": 0.0}]
    decayed = [p for p in parameters if p.dim() >= 2]
    plain = [p for p in parameters if p.dim() < 2]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


class AdamWEMA(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter, Alg. 2) and ``ema <- ema + (1 - decay) (weight - ema)`` after it.

    ``max_norm`` is for optimizers that see whole gradients (no ZeRO): it clips by global norm and leaves everything
    untouched, the step counter too, when the norm is not finite, without the host waiting for the device. Under ZeRO
    the optimizer sees shards, and DeepSpeed clips and skips.
    """

    def __init__(self, params, *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float = 0.0,
                 ema_decay: float, max_norm: float | None = None):  # fmt: skip
        defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay, "ema_decay": ema_decay}
        super().__init__(params, defaults)
        self.max_norm = max_norm
        self.grad_norm: Tensor | None = None

    def init_state(self, tensors: Iterable[Tensor] | None = None) -> None:
        """Create missing state for ``tensors`` (default: all parameters); the EMA starts as the weights.

        Raises RuntimeError for moments without an EMA: state loaded by a tool that does not know it.
        """
        for p in tensors if tensors is not None else [p for g in self.param_groups for p in g["params"]]:
            state = self.state[p]
            if "exp_avg" in state and "ema" not in state:
                raise RuntimeError("optimizer state has moments but no 'ema': it was not written by erw")
            if "exp_avg" not in state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
                state["ema"] = p.detach().clone()

    def _scale_and_keep(self) -> tuple[Tensor | float, Tensor | float]:
        """(factor on gradients, 1 or 0): clipping and the skip of a non-finite step."""
        if self.max_norm is None:
            return 1.0, 1.0
        gradients = [p.grad for g in self.param_groups for p in g["params"] if p.grad is not None]
        self.grad_norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        keep = torch.isfinite(self.grad_norm).to(torch.float32)
        scale = (self.max_norm / (self.grad_norm + 1e-6)).clamp(max=1.0) if self.max_norm else keep
        return scale, keep

    @torch.no_grad()
    def step(self, closure=None):
        """One step of every group. Gradients are fp32, like the parameters."""
        scale, keep = self._scale_and_keep()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self.init_state(params)
                _update(params, [self.state[p] for p in params], group, scale, keep)


def _update(params: list[Tensor], states: list[dict], group: dict, scale, keep) -> None:
    """AdamW and EMA over lists of tensors. ``keep`` = 0 makes every line below leave its target as it was."""
    (beta1, beta2), lr = group["betas"], group["lr"]
    steps, m, v, ema = ([s[k] for s in states] for k in ("step", *STATE_KEYS))
    grads = [p.grad for p in params]
    if isinstance(keep, Tensor):
        grads = [torch.where(keep > 0, g * scale, 0.0) for g in grads]
    torch._foreach_add_(steps, keep)
    torch._foreach_mul_(m, 1 - (1 - beta1) * keep)
    torch._foreach_add_(m, grads, alpha=1 - beta1)
    torch._foreach_mul_(v, 1 - (1 - beta2) * keep)
    torch._foreach_addcmul_(v, grads, grads, value=1 - beta2)
    count = steps[0].clamp(min=1.0)
    correction1, correction2 = 1 - beta1**count, 1 - beta2**count
    if group["weight_decay"]:
        torch._foreach_mul_(params, 1 - lr * group["weight_decay"] * keep)
    denominator = torch._foreach_sqrt(v)
    torch._foreach_div_(denominator, correction2.sqrt())
    torch._foreach_add_(denominator, group["eps"])
    update = torch._foreach_div(m, denominator)
    torch._foreach_mul_(update, -lr * keep / correction1)
    torch._foreach_add_(params, update)
    difference = torch._foreach_sub(params, ema)
    torch._foreach_mul_(difference, (1 - group["ema_decay"]) * keep)
    torch._foreach_add_(ema, difference)
