"""``--dry-run``: the settings and phases of a run in words."""

from erw.config import TrainConfig
from erw.engine.config import micro_batch, read_ds_config, stage_of
from erw.flops import forward_flops
from erw.plan.costs import Costs, phases
from erw.settings import leaves
from erw.types import Phase, TeacherSpec


def phase_words(phase: Phase) -> str:
    """What a step of ``phase`` trains and aligns."""
    blocks = f"blocks {phase.first}..{phase.depth} on clean latents at t = 0" if phase.depth else "the whole model"
    align = f"alignment of block {phase.taps[0]}, weight {phase.coefficient:g}" if phase.aligns else "no alignment"
    return f"{blocks}; {align}"


def teacher_words(config: TrainConfig, ranks: int = 1) -> str | None:
    """What the run's teachers cost: FLOPs and their share of the run's where they run online, disk where their features are
    cached. None without a teacher."""
    teacher = config.active_teacher
    if not teacher.names:
        return None
    if teacher.source == "cached":
        size = sum(feature_bytes(spec) for spec in config.teacher_specs)
        return (
            f"teacher {teacher.name}, cached: features take {size / 1e3:.4g} kB an image of the data set; computing them, once,"
            " is not in the total"
        )
    costs, planned = Costs(config, ranks=ranks), phases(config)
    aligned = sum(images for phase, images in planned if phase.aligns)
    spent = sum(costs.teacher(phase) * images for phase, images in planned)
    total = sum(costs.per_image(phase) * images for phase, images in planned)
    return (
        f"teacher {teacher.name}, online: {spent / max(aligned, 1) / 1e9:.4g} GFLOP an image, {aligned:,} images: {spent:.4g}"
        f" FLOP, {spent / total:.1%} of the total"
    )


def feature_bytes(spec: TeacherSpec) -> int:
    """Of one image's tokens, in 16 bits."""
    return 2 * spec.grid**2 * spec.width


def plan_text(config: TrainConfig, ranks: int = 1) -> str:
    """The resolved settings and the phases with their images, steps and FLOPs."""
    costs, teacher = Costs(config, ranks=ranks), teacher_words(config, ranks)
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
    lines += [teacher] if teacher else []
    lines += [f"total: {total:.4g} FLOP (3x forward of what has gradients, once an online teacher's)"]
    return "\n".join(lines)
