"""REPA (Yu et al., arXiv 2410.06940): align one block's hidden state with a teacher's patch features."""

from dataclasses import dataclass

from erw.align.base import check_depth, check_teachers
from erw.align.projector import ProjectedMethod
from erw.models.sit import SiTConfig
from erw.settings import setting
from erw.types import Phase, TeacherSpec


@dataclass(frozen=True, kw_only=True)
class Repa(ProjectedMethod):
    """L = L_velocity + coefficient * L_align (REPA, Eq. 9), the same from the first image to the last unless it decays."""

    name: str = "repa"
    depth: int = setting(8, "block (from 1) whose output is aligned")
    coefficient: float = setting(0.5, "weight lambda of the alignment loss; 0 computes nothing of it")

    @property
    def needs_teacher(self) -> bool:
        return self.coefficient != 0.0

    def check(self, model: SiTConfig, teachers: tuple[TeacherSpec, ...], batch: int) -> None:
        check_depth("depth", self.depth, model)
        self.check_projection()
        check_teachers(self, model, teachers)

    def phase(self, images: int) -> Phase:
        weight = self.decayed(self.coefficient, images)
        return Phase(name="train", taps=(self.depth,) if weight else (), coefficient=weight)
