"""What an objective is: how a training input is made noisy, and what the network's output is compared with."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from erw import rng
from erw.errors import UserError
from erw.models.sit import SiTConfig
from erw.ops import OpSet
from erw.rng import Purpose
from erw.settings import setting
from erw.types import Phase


@dataclass(frozen=True)
class StepInput:
    """Inputs of one forward: x (B, C, S, S), t (B,) fp32, y (B,), and the targets by name, None in a warm-up."""

    x: Tensor
    t: Tensor
    y: Tensor
    target: dict[str, Tensor] | None


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Base of every objective. The fields are its settings (``--objective.*``); nothing here holds state.

    Noise, t and label drop of each image depend on (seed, stream position) alone.
    """

    samplers: ClassVar[tuple[str, ...]] = ()  # entries of `erw.samplers.SAMPLERS` that can sample such a network
    time_scale: ClassVar[float] = 1.0  # t of pure noise, as the network sees it; t of clean data is 0

    name: str = setting("flow", "which objective; set by the preset")
    label_dropout: float = setting(0.1, "share of images trained without label, for classifier-free guidance")

    def __post_init__(self):
        if not 0.0 <= self.label_dropout <= 1.0:
            raise UserError(f"--objective.label_dropout must lie in 0..1, not {self.label_dropout}")

    def check(self, model: SiTConfig) -> None:
        """Raise `UserError` where the network cannot learn this objective."""

    def corrupt(self, seed: int, latents: Tensor, index: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """(noisy x, t, targets) of clean latents (B, C, S, S) fp32 at stream positions ``index`` (B,)."""
        raise NotImplementedError

    def noised(self, clean: Tensor, noise: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """(x_t, t as the network sees it) of ``clean`` and ``noise`` (B, C, S, S) at ``time`` (B,) fp32: 0 is data, 1 noise."""
        raise NotImplementedError

    def losses(self, prediction: Tensor, x: Tensor, t: Tensor, target: dict[str, Tensor], ops: OpSet) -> dict[str, Tensor]:
        """Parts of the loss by name, each (B,) fp32 (fp64 for fp64 input); their sum is the objective.

        prediction (B, C or 2C, S, S) is the network's output for ``x`` and ``t``; ``target`` came from `corrupt`.
        """
        raise NotImplementedError

    def draw(self, phase: Phase, seed: int, latents: Tensor, labels: Tensor, index: Tensor, null: int) -> StepInput:
        """The `StepInput` of a micro-batch: latents (B, C, S, S) fp32, labels and index (B,); ``null`` is the null class.

        A phase that does not denoise sees the clean latent at t = 0 (ERW, Sec. 3). Labels are dropped in every phase.
        """
        dropped = rng.uniform(seed, index, Purpose.LABEL_DROP) < self.label_dropout
        y = torch.where(dropped, null, labels)
        if not phase.denoise:
            return StepInput(latents, torch.zeros_like(index, dtype=torch.float32), y, None)
        x, t, target = self.corrupt(seed, latents, index)
        return StepInput(x, t, y, target)
