"""What a run will do and cost, before it starts."""

from erw.config import TrainConfig
from erw.engine.config import micro_batch, read_ds_config, stage_of
from erw.flops import forward_flops, train_flops
from erw.settings import leaves
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


def phase_words(phase: Phase) -> str:
    """What a step of ``phase`` trains and aligns."""
    blocks = f"blocks {phase.first}..{phase.depth} on clean latents at t = 0" if phase.depth else "the whole model"
    align = f"alignment of block {phase.taps[0]}, weight {phase.coefficient:g}" if phase.aligns else "no alignment"
    return f"{blocks}; {align}"


def plan_text(config: TrainConfig, ranks: int = 1) -> str:
    """The resolved settings and the phases with their images, steps and FLOPs."""
    costs = Costs(config)
    stage = stage_of(read_ds_config(config.engine.ds_config))
    lines = ["settings:"] + [f"  {name} = {value}" for name, _, _, value in leaves(config)]
    lines += [
        "",
        f"model: {config.model.tokens} tokens, forward {forward_flops(config.model) / 1e9:.4g} GFLOP an image",
    ]
    lines += [f"ranks {ranks}: micro-batch {micro_batch(config.train.batch, config.engine.accumulation, ranks)}"
              f" x accumulation {config.engine.accumulation}"]  # fmt: skip
    total = 0.0
    for phase, images in phases(config):
        each = costs.per_image(phase)
        total += each * images
        lines += [f"phase {phase.name}: {images:,} images = {images // config.train.batch:,} steps of {phase_words(phase)};"
                  f" ZeRO-{min(stage, 3 if phase.depth is None else 2)}; {each / 1e9:.4g} GFLOP an image"]  # fmt: skip
    lines += [f"total: {total:.4g} FLOP (3x forward of what has gradients; teacher not included here)"]
    return "\n".join(lines)
