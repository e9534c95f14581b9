"""Small settings that tests share: a two-second run with every part in it."""

from dataclasses import replace

import torch

from erw.align import Erw, Plain, Repa
from erw.config import TrainConfig
from erw.models.sit import SiTConfig
from erw.presets import preset
from erw.types import Phase, Targets

MODEL = SiTConfig(depth=3, width=32, num_heads=2, patch_size=2, input_size=8, in_channels=1, num_classes=10)
BATCH = 16
METHODS = {
    "sit": Plain(),
    "repa": Repa(depth=2, projector_width=24),
    "erw": Erw(depth=1, warmup_images=3 * BATCH, projection_depth=2, projector_width=24, decay="half-life", decay_images=200),
}

METHODS |= {"dit": METHODS["sit"], "dit-repa": METHODS["repa"], "dit-erw": METHODS["erw"]}


def tiny(name: str, out, images: int = 6 * BATCH, **sections) -> TrainConfig:
    """The preset ``digits-NAME`` cut down; ``sections`` maps a section to the fields to change in it."""
    config = preset(f"digits-{name}")
    config = replace(
        config,
        model=replace(MODEL, learn_sigma=config.model.learn_sigma),
        method=METHODS[name],
        optim=replace(config.optim, lr=1e-4),  # the papers'; the presets' own may change with a sweep
        train=replace(config.train, images=images, batch=BATCH, out=str(out), log_every=BATCH, tensorboard=False),
        eval=replace(config.eval, name="none"),
    )
    for section, fields in sections.items():
        config = replace(config, **{section: replace(getattr(config, section), **fields)})
    return config


def random_step_inputs(config: TrainConfig, phase: Phase, count: int = 8) -> tuple:
    """Inputs of a `TrainStep` in ``phase``: x, t, y, the objective's targets, the teachers' tokens."""
    index = torch.arange(count)
    channels, side = config.model.in_channels, config.model.input_size
    latents = torch.randn(count, channels, side, side)
    drawn = config.objective.draw(phase, 0, latents, index % config.model.num_classes, index, config.model.num_classes)
    tokens = tuple(torch.randn(count, spec.grid**2, spec.width) for spec in config.teacher_specs)
    return drawn.x, drawn.t, drawn.y, drawn.target, Targets(tokens) if phase.aligns else None
