"""REPA (Yu et al., arXiv 2410.06940): align one block's hidden state with a teacher's patch features."""

from dataclasses import dataclass

from erw.align.base import check_depth, check_teacher
from erw.align.projector import ProjectedMethod
from erw.models.sit import SiTConfig
from erw.settings import setting
from erw.types import Phase, TeacherSpec


@dataclass(frozen=True, kw_only=True)
class Repa(ProjectedMethod):
    """L = L_velocity + coefficient * L_align (REPA, Eq. 9), the same from the first image to the last."""

    name: str = "repa"
    depth: int = setting(8, "block (from 1) whose output is aligned")
    coefficient: float = setting(0.5, "weight lambda of the alignment loss; 0 computes nothing of it")

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
