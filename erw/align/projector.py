"""What REPA and its descendants share: one projected hidden state against the teacher's patch tokens, by cosine."""

from dataclasses import dataclass

from torch import Tensor, nn

from erw.align.base import Method
from erw.models.sit import SiTConfig, init_linear
from erw.ops import OpSet
from erw.settings import setting
from erw.types import TeacherSpec


def build_projector(width: int, hidden: int, out: int) -> nn.Sequential:
    """REPA's three-layer SiLU MLP (REPA, Sec. 3.1): (B, T, width) to (B, T, out). Children 0, 2, 4 are the Linears."""
    projector = nn.Sequential(nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, out))
    projector.apply(init_linear)
    return projector


class Projectors(nn.Module):
    """One projector for each teacher, under the name that public REPA checkpoints use: ``projectors.0.*``."""

    def __init__(self, width: int, hidden: int, outs: tuple[int, ...]):
        super().__init__()
        self.projectors = nn.ModuleList(build_projector(width, hidden, out) for out in outs)


@dataclass(frozen=True, kw_only=True)
class ProjectedMethod(Method):
    """A method with one tap, one projector and the cosine loss; subclasses say where and when."""

    projector_width: int = setting(2048, "hidden width of the projector")

    def build_heads(self, model: SiTConfig, teacher: TeacherSpec | None) -> nn.Module:
        return Projectors(model.width, self.projector_width, (teacher.width,)) if teacher else nn.Module()

    def head_flops(self, model: SiTConfig, teacher: TeacherSpec | None) -> int:
        if teacher is None:
            return 0
        hidden = self.projector_width
        return 2 * model.tokens * (model.width * hidden + hidden * hidden + hidden * teacher.width)

    def loss(self, heads: nn.Module, taps: dict[int, Tensor], target: Tensor, ops: OpSet) -> Tensor:
        """Minus the cosine between the projected tap and the teacher's tokens, averaged over tokens, (B,) fp32."""
        ((_, hidden),) = taps.items()
        projector = heads.projectors[0]
        return ops.cosine_alignment(projector(hidden.to(projector[0].weight.dtype)), target)
