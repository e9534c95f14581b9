"""What REPA and its descendants share: a projected hidden state against each teacher's patch tokens, at a weight that may
decay."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from erw.align.base import Method
from erw.errors import UserError
from erw.kernels._cpu_linear import cpu_linear
from erw.models.sit import SiTConfig, init_linear
from erw.ops import OpSet
from erw.settings import setting
from erw.types import Targets, TeacherSpec


class Projector(nn.Sequential):
    """REPA's three-layer SiLU MLP (REPA, Sec. 3.1): (B, T, width) to (B, T, out). Children 0, 2, 4 are the Linears."""

    def __init__(self, width: int, hidden: int, out: int):
        super().__init__(nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, out))
        self.apply(init_linear)
        self._for_cpu_compiler = False

    def compile_on_cpu(self) -> None:
        """torch.compile, in place."""
        from erw.kernels._cpu_compiler import OPTIONS

        self._for_cpu_compiler = True
        self.compile(dynamic=False, options=OPTIONS)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) to (B, T, out)."""
        if not self._for_cpu_compiler:
            return super().forward(x)
        for layer in self:
            x = cpu_linear(x, layer.weight, layer.bias) if isinstance(layer, nn.Linear) else layer(x)
        return x


class Projectors(nn.Module):
    """One projector for each teacher, under the names that public REPA checkpoints use: ``projectors.0.*``, ..."""

    def __init__(self, width: int, hidden: int, outs: tuple[int, ...]):
        super().__init__()
        self.projectors = nn.ModuleList(Projector(width, hidden, out) for out in outs)


@dataclass(frozen=True, kw_only=True)
class ProjectedMethod(Method):
    """A method with one tap and one projector a teacher; subclasses say where and when."""

    projector_width: int = setting(2048, "hidden width of the projector")
    align: Literal["cosine", "nt-xent", "nt-xent-in-image"] = setting(
        "cosine", "loss: cosine; nt-xent: other images of the group are negatives; nt-xent-in-image: other tokens are"
    )
    tau: float = setting(0.1, "temperature of nt-xent")
    group_images: int = setting(64, "nt-xent: consecutive images of the stream that are each other's negatives")
    decay: Literal["constant", "half-life", "exponential", "cut-off"] = setting(
        "constant", "how the alignment's weight falls with the images k: not; 2^(-k/d); e^(-k/d); to 0 when k is d"
    )
    decay_images: float = setting(0.0, "the decay's d, in images since the whole model began to train")

    @property
    def group(self) -> int:
        return self.group_images if self.align == "nt-xent" else 1

    def check_projection(self) -> None:
        """Raise `UserError` for settings of this class that make no sense."""
        if self.tau <= 0:
            raise UserError(f"--method.tau must be above 0, not {self.tau}")
        if self.align == "nt-xent" and self.group_images < 2:
            raise UserError(f"--method.group_images must be at least 2, or there are no negatives; not {self.group_images}")
        if self.decay != "constant" and self.decay_images <= 0:
            raise UserError(f"--method.decay {self.decay} needs --method.decay_images above 0, not {self.decay_images:g}")

    def decayed(self, coefficient: float, images: int) -> float:
        """The weight that began at ``coefficient``, ``images`` later."""
        if self.decay == "half-life":
            return coefficient * 2.0 ** (-images / self.decay_images)
        if self.decay == "exponential":
            return coefficient * math.exp(-images / self.decay_images)
        if self.decay == "cut-off":
            return coefficient if images < self.decay_images else 0.0
        return coefficient

    def build_heads(self, model: SiTConfig, teachers: tuple[TeacherSpec, ...]) -> nn.Module:
        outs = tuple(teacher.width for teacher in teachers)
        return Projectors(model.width, self.projector_width, outs) if outs else nn.Module()

    def head_flops(self, model: SiTConfig, teachers: tuple[TeacherSpec, ...]) -> int:
        hidden = self.projector_width
        return sum(2 * model.tokens * (model.width * hidden + hidden * hidden + hidden * t.width) for t in teachers)

    def loss(self, heads: nn.Module, taps: dict[int, Tensor], targets: Targets, ops: OpSet) -> Tensor:
        """(B,) fp32: mean over teachers of the projected tap's loss against their tokens (REPA, Eq. 8)."""
        ((_, hidden),) = taps.items()
        losses = []
        for projector, tokens in zip(heads.projectors, targets.tokens, strict=True):
            z = projector(hidden.to(projector[0].weight.dtype))
            losses.append(self._loss(z, tokens, targets.first, ops))
        return torch.stack(losses).mean(dim=0) if len(losses) > 1 else losses[0]

    def _loss(self, z: Tensor, tokens: Tensor, first: int, ops: OpSet) -> Tensor:
        if self.align == "nt-xent":
            return ops.nt_xent_alignment(z, tokens, first=first, group=self.group_images, tau=self.tau)
        own = tokens[first : first + len(z)]
        if self.align == "nt-xent-in-image":
            return ops.nt_xent_in_image(z, own, tau=self.tau)
        return ops.cosine_alignment(z, own)
