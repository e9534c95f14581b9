"""``--dry-run``: the settings and phases of a run in words."""

from erw.config import TrainConfig
from erw.engine.config import micro_batch, read_ds_config, stage_of
from erw.flops import forward_flops
from erw.plan.costs import Costs, phases
from erw.settings import leaves
from erw.types import Phase


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
