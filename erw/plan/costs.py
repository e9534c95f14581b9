"""FLOPs of a run, phase by phase."""

from erw.config import TrainConfig
from erw.flops import train_flops
from erw.types import Phase


class Costs:
    """FLOPs of one training image in each phase, teacher included where a `FeatureSource` says what it costs."""

    def __init__(self, config: TrainConfig, features=None):
        self.config, self.features = config, features

    def per_image(self, phase: Phase) -> float:
        """See `erw.flops`."""
        config = self.config
        step = train_flops(config.model, config.method, phase, config.teacher_specs)
        return step + (self.features.flops(config.train.images) if self.features and phase.aligns else 0.0)


def phases(config: TrainConfig) -> list[tuple[Phase, int]]:
    """(phase as it begins, images in it) in order."""
    starts = [0, *config.method.boundaries()]
    ends = [*starts[1:], config.train.images]
    return [(config.method.phase(start), end - start) for start, end in zip(starts, ends, strict=True)]


def images_for_budget(config: TrainConfig, flops: float) -> int:
    """Training images, a multiple of the batch, at which ``config`` comes nearest to spending ``flops`` (no teacher)."""
    batch, costs = config.train.batch, Costs(config)
    images, left = 0, flops
    for end in config.method.boundaries():
        each = costs.per_image(config.method.phase(images))
        if each * (end - images) > left:
            break
        left -= each * (end - images)
        images = end
    return images + round(left / (costs.per_image(config.method.phase(images)) * batch)) * batch
