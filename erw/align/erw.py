"""ERW (Embedded Representation Warmup, arXiv 2504.10188, third version).

Phase 1 (warm-up) trains embedders, blocks ``first`` to ``depth`` and the projector on clean latents at t = 0 against the
teacher's features; nothing else exists yet. Phase 2 trains the whole model from those weights with REPA's loss, its
projector re-attached at ``projection_depth`` and its weight decaying from ``coefficient``: lambda(k) = coefficient *
exp(-k / d) with ``decay exponential``, k images into phase 2 (the paper's c0 exp(-k / tau)).
"""

from dataclasses import dataclass

from erw.align.base import check_depth, check_teachers
from erw.align.projector import ProjectedMethod
from erw.errors import UserError
from erw.models.sit import SiTConfig
from erw.settings import setting
from erw.types import Phase, TeacherSpec


@dataclass(frozen=True, kw_only=True)
class Erw(ProjectedMethod):
    """Warm-up of the first blocks, then the whole model, in one run."""

    name: str = "erw"
    first: int = setting(1, "first block that phase 1 warms up; later ones are for studies of placement (ERW, Table 5)")
    depth: int = setting(5, "last block that phase 1 warms up")
    warmup_images: int = setting(25_600_000, "length of phase 1 in images; the paper's is 100K steps of 256")
    projection_depth: int = setting(18, "block (from 1) whose output is aligned in phase 2; not before depth")
    coefficient: float = setting(0.5, "weight of the alignment loss when phase 2 begins; 0 computes nothing of it")

    @property
    def needs_teacher(self) -> bool:
        return True

    def check(self, model: SiTConfig, teachers: tuple[TeacherSpec, ...], batch: int) -> None:
        for name in ("first", "depth", "projection_depth"):
            check_depth(name, getattr(self, name), model)
        if self.first > self.depth:
            raise UserError(f"--method.first {self.first} lies behind --method.depth {self.depth}: no block would warm up")
        if self.projection_depth < self.depth:
            raise UserError(
                f"--method.projection_depth {self.projection_depth} lies before the warm-up's end"
                f" (--method.depth {self.depth}): choose {self.depth} or more"
            )
        if self.warmup_images < batch or self.warmup_images % batch:
            raise UserError(
                f"--method.warmup_images {self.warmup_images} must be a multiple of --train.batch {batch}, and not 0"
            )
        self.check_projection()
        check_teachers(self, model, teachers)

    def phase(self, images: int) -> Phase:
        if images < self.warmup_images:
            return Phase(name="warmup", denoise=False, depth=self.depth, first=self.first, taps=(self.depth,), coefficient=1.0)
        weight = self.decayed(self.coefficient, images - self.warmup_images)
        return Phase(name="full", taps=(self.projection_depth,) if weight else (), coefficient=weight)

    def boundaries(self) -> tuple[int, ...]:
        return (self.warmup_images,)
