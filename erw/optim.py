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
from erw.kernels import adamw_ema_list, clip_coefficient, grad_norm_sq
from erw.kernels._adamw import squares_compiled
from erw.kernels._norm import grad_norm_sq_reference
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

    ``max_norm`` (0: any norm) clips by global norm and leaves everything untouched, the step counter too, where the norm is
    not finite, without the host waiting for the device; None leaves both to someone else. It needs all gradients of this
    process in one call. ``sharded``: they are a part of the whole, each process of the default group having another.
    ``kernels`` = False runs plain PyTorch on CUDA too; ``compiled``: on a CPU torch.compile makes one pass of it.
    ``halves``: to a parameter the 16-bit weight that forward and backward use in its place, whose gradient a step takes and
    which gets the new value, rounded, in the same pass.
    """

    def __init__(self, params, *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float = 0.0,
                 ema_decay: float, max_norm: float | None = None, sharded: bool = False, kernels: bool = True,
                 compiled: bool = False, halves: dict[Tensor, Tensor] | None = None):  # fmt: skip
        defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay, "ema_decay": ema_decay}
        super().__init__(params, defaults)
        self.max_norm, self.sharded, self.kernels, self.compiled = max_norm, sharded, kernels, compiled
        self.halves, self.grad_norm = halves or {}, None

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

    def _gradient(self, p: Tensor) -> Tensor | None:
        return self.halves.get(p, p).grad

    def _scale_and_keep(self) -> tuple[Tensor | None, Tensor | None]:
        """(factor on gradients, 1 or 0): clipping and the skip of a non-finite step; None where it is not ours."""
        if self.max_norm is None:
            return None, None
        gradients = [grad for g in self.param_groups for p in g["params"] if (grad := self._gradient(p)) is not None]
        if self.sharded:
            squares = grad_norm_sq if self.kernels and gradients[0].is_cuda else grad_norm_sq_reference
            square = torch.stack([squares(g) for g in gradients]).sum()
            torch.distributed.all_reduce(square)
            self.grad_norm = square.sqrt()
        elif self.compiled and not gradients[0].is_cuda:
            self.grad_norm = torch.stack(squares_compiled(gradients)).sum().sqrt()
        else:
            wide = torch.promote_types(gradients[0].dtype, torch.float32)
            self.grad_norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients, dtype=wide)))
        return clip_coefficient(self.grad_norm, self.max_norm)

    @torch.no_grad()
    def step(self, closure=None):
        """One step of every group: kernels on CUDA, their plain twin on CPUs. The learning rate may be a 0-d tensor."""
        scale, keep = self._scale_and_keep()
        for group in self.param_groups:
            params = [p for p in group["params"] if self._gradient(p) is not None]
            if not params:
                continue
            self.init_state(params)
            states = [self.state[p] for p in params]
            steps, *moments = ([s[key] for s in states] for key in ("step", *STATE_KEYS))
            beta1, beta2 = group["betas"]
            rates = {key: group[key] for key in ("lr", "eps", "weight_decay", "ema_decay")}
            adamw_ema_list(
                params, [self._gradient(p) for p in params], *moments, steps=steps, beta1=beta1, beta2=beta2, grad_scale=scale,
                keep=keep, copies=[self.halves[p] for p in params] if self.halves else None, kernels=self.kernels,
                compiled=self.compiled, **rates,
            )  # fmt: skip
