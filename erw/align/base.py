"""What a method is: settings, a schedule of phases, train-only heads and a loss. One method, one file."""

from dataclasses import dataclass

from torch import Tensor, nn

from erw.errors import UserError
from erw.models.sit import SiTConfig
from erw.ops import OpSet
from erw.settings import setting
from erw.types import Phase, Targets, TeacherSpec


@dataclass(frozen=True, kw_only=True)
class Method:
    """Base of every method. The fields are its settings (``--method.*``); nothing here holds state.

    The trainer asks `phase` before every step. When the phase's name changes, the trainer hands over: it carries over
    the weights that both phases have, builds the rest from the seed and starts optimizer and EMA anew.
    """

    name: str = setting("none", "which method; set by the preset")

    @property
    def needs_teacher(self) -> bool:
        """Whether any phase looks at teacher features."""
        return False

    @property
    def group(self) -> int:
        """Images whose teacher tokens the loss of each sees: stream positions k * group to (k + 1) * group - 1. 1: its own."""
        return 1

    def check(self, model: SiTConfig, teachers: tuple[TeacherSpec, ...], batch: int) -> None:
        """Raise `UserError` where the settings do not fit the model, the teachers or the global batch size."""

    def phase(self, images: int) -> Phase:
        """The phase of the step that starts when ``images`` training images have been seen."""
        raise NotImplementedError

    def boundaries(self) -> tuple[int, ...]:
        """Image counts at which a phase of another name begins, in order."""
        return ()

    def build_heads(self, model: SiTConfig, teachers: tuple[TeacherSpec, ...]) -> nn.Module:
        """Modules that exist in training only; their parameters join the optimizer."""
        return nn.Module()

    def head_flops(self, model: SiTConfig, teachers: tuple[TeacherSpec, ...]) -> int:
        """FLOPs of the heads' forward for one image (1 multiply-add = 2)."""
        return 0

    def loss(self, heads: nn.Module, taps: dict[int, Tensor], targets: Targets, ops: OpSet) -> Tensor:
        """Alignment loss per sample, (B,) fp32, from tapped hidden states (B, T, D) and the teachers' tokens."""
        raise NotImplementedError


def check_depth(name: str, depth: int, model: SiTConfig) -> None:
    """Raise unless block number ``depth`` exists."""
    if not 1 <= depth <= model.depth:
        raise UserError(f"--method.{name} {depth} is not a block of this model: it has blocks 1 to {model.depth}")


def check_teachers(method: Method, model: SiTConfig, teachers: tuple[TeacherSpec, ...]) -> None:
    """Raise unless a method that needs a teacher has one or more whose patch grid is the model's token grid."""
    if not method.needs_teacher:
        return
    if not teachers:
        raise UserError(f"method {method.name} needs a teacher: name one with --teacher.name")
    for teacher in teachers:
        if teacher.grid != model.grid:
            raise UserError(
                f"teacher {teacher.name} gives {teacher.grid}x{teacher.grid} patches, the model has"
                f" {model.grid}x{model.grid} tokens: choose another --teacher.name or --model.patch_size"
            )
