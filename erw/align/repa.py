"""REPA (Yu et al., arXiv 2410.06940): align one block's hidden state with a teacher's patch features."""

from dataclasses import dataclass

from torch import Tensor, nn

from erw.align.base import Method
from erw.align.projector import Projectors
from erw.errors import UserError
from erw.models.sit import SiTConfig
from erw.ops import OpSet
from erw.settings import setting
from erw.types import Phase, TeacherSpec


@dataclass(frozen=True, kw_only=True)
class Repa(Method):
    """L = L_velocity + coefficient * L_align (REPA, Eq. 9), the same from the first image to the last."""

    name: str = "repa"
    depth: int = setting(8, "block (from 1) whose output is aligned")
    coefficient: float = setting(0.5, "weight lambda of the alignment loss; 0 computes nothing of it")
    projector_width: int = setting(2048, "hidden width of the projector")

    @property
    def needs_teacher(self) -> bool:
        return self.coefficient != 0.0

    def check(self, model: SiTConfig, teacher: TeacherSpec | None, batch: int) -> None:
        check_depth("depth", self.depth, model)
        check_teacher(self, model, teacher)

    def phase(self, images: int) -> Phase:
        if self.coefficient == 0.0:
            return Phase(name="train")
        return Phase(name="train", taps=(self.depth,), coefficient=self.coefficient)

    def build_heads(self, model: SiTConfig, teacher: TeacherSpec | None) -> nn.Module:
        return Projectors(model.width, self.projector_width, (teacher.width,)) if teacher else nn.Module()

    def head_flops(self, model: SiTConfig, teacher: TeacherSpec | None) -> int:
        return projector_flops(model, self.projector_width, teacher)

    def loss(self, heads: nn.Module, taps: dict[int, Tensor], target: Tensor, ops: OpSet) -> Tensor:
        return projected_cosine(heads, taps, target, ops)


def projected_cosine(heads: nn.Module, taps: dict[int, Tensor], target: Tensor, ops: OpSet) -> Tensor:
    """Minus the cosine between the projected tap and the teacher's tokens, (B,)."""
    ((_, hidden),) = taps.items()
    projector = heads.projectors[0]
    return ops.cosine_alignment(projector(hidden.to(projector[0].weight.dtype)), target)


def projector_flops(model: SiTConfig, hidden: int, teacher: TeacherSpec | None) -> int:
    """Forward FLOPs of one projector over all tokens of one image."""
    if teacher is None:
        return 0
    return 2 * model.tokens * (model.width * hidden + hidden * hidden + hidden * teacher.width)


def check_depth(name: str, depth: int, model: SiTConfig) -> None:
    """Raise unless block number ``depth`` exists."""
    if not 1 <= depth <= model.depth:
        raise UserError(f"--method.{name} {depth} is not a block of this model: it has blocks 1 to {model.depth}")


def check_teacher(method: Method, model: SiTConfig, teacher: TeacherSpec | None) -> None:
    """Raise unless a method that needs a teacher has one whose patch grid is the model's token grid."""
    if not method.needs_teacher:
        return
    if teacher is None:
        raise UserError(f"method {method.name} needs a teacher: name one with --teacher.name")
    if teacher.grid != model.grid:
        raise UserError(
            f"teacher {teacher.name} gives {teacher.grid}x{teacher.grid} patches, the model has {model.grid}x{model.grid}"
            " tokens: choose another --teacher.name or --model.patch_size"
        )
