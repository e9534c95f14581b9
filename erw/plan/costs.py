"""FLOPs of a run, phase by phase."""

from bisect import bisect_left
from functools import cached_property

from erw.config import TrainConfig
from erw.engine.config import micro_batch
from erw.flops import online_share, train_flops
from erw.teachers import teacher_flops
from erw.types import Phase


class Costs:
    """FLOPs of one training image in each phase.

    The teacher is in them: cached or online as the `FeatureSource` ``features`` says, without one an online teacher's forward
    on ``ranks`` ranks; what a cache will cost is not known then.
    """

    def __init__(self, config: TrainConfig, features=None, ranks: int = 1):
        self.config, self.features, self.ranks = config, features, ranks

    def per_image(self, phase: Phase) -> float:
        """See `erw.flops`."""
        config = self.config
        return train_flops(config.model, config.method, phase, config.teacher_specs) + self.teacher(phase)

    def teacher(self, phase: Phase) -> float:
        """The teacher's part of `per_image`."""
        if not phase.aligns:
            return 0.0
        return self.features.flops(self._aligned) if self.features else self._online

    @cached_property
    def _aligned(self) -> int:
        return sum(images for phase, images in phases(self.config) if phase.aligns)

    @cached_property
    def _online(self) -> float:
        config, teacher = self.config, self.config.active_teacher
        if teacher.source == "cached":
            return 0.0
        micro = micro_batch(config.train.batch, config.engine.accumulation, self.ranks)
        forward = sum(teacher_flops(name, config.model.grid, teacher) for name in teacher.names)
        return online_share(forward, config.method.group, micro)


def phases(config: TrainConfig) -> list[tuple[Phase, int]]:
    """(phase as it begins, images in it) in order. One whose alignment ends before it does is two: with it, and without."""
    starts = [0, *config.method.boundaries()]
    ends = [*starts[1:], config.train.images]
    parts = []
    for start, end in zip(starts, ends, strict=True):
        last = _alignment_end(config, start, end)
        parts += [(start, last), (last, end)] if start < last < end else [(start, end)]
    return [(config.method.phase(start), end - start) for start, end in parts]


def _alignment_end(config: TrainConfig, start: int, end: int) -> int:
    """The image at which the first step of the phase from ``start`` to ``end`` begins that aligns nothing; ``end``: all do.
    A weight falls or stays, so steps that align come first."""
    steps = range(start, end, config.train.batch)
    first = bisect_left(steps, True, key=lambda images: not config.method.phase(images).aligns)
    return steps[first] if first < len(steps) else end


def last_alignment(config: TrainConfig) -> int | None:
    """The image at which the last step that aligns ends; None where that is the run's last."""
    end = config.train.images
    for phase, images in reversed(phases(config)):
        if phase.aligns:
            break
        end -= images
    return end if end < config.train.images else None


def images_for_budget(config: TrainConfig, flops: float) -> int:
    """Training images, a multiple of the batch, at which ``config`` comes nearest to spending ``flops``."""
    batch, costs = config.train.batch, Costs(config)
    images, left = 0, flops
    for end in config.method.boundaries():
        each = costs.per_image(config.method.phase(images))
        if each * (end - images) > left:
            break
        left -= each * (end - images)
        images = end
    return images + round(left / (costs.per_image(config.method.phase(images)) * batch)) * batch
