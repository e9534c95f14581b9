"""Small settings that tests share: a two-second run with every part in it."""

from dataclasses import replace

from erw.align import Erw, Plain, Repa
from erw.config import TrainConfig
from erw.models.sit import SiTConfig
from erw.presets import preset

MODEL = SiTConfig(depth=3, width=32, num_heads=2, patch_size=2, input_size=8, in_channels=1, num_classes=10)
BATCH = 16
METHODS = {
    "sit": Plain(),
    "repa": Repa(depth=2, projector_width=24),
    "erw": Erw(depth=1, warmup_images=3 * BATCH, projection_depth=2, projector_width=24, half_life_images=200),
}


def tiny(name: str, out, images: int = 6 * BATCH, **sections) -> TrainConfig:
    """The preset ``digits-NAME`` cut down; ``sections`` maps a section to the fields to change in it."""
    config = preset(f"digits-{name}")
    config = replace(
        config,
        model=MODEL,
        method=METHODS[name],
        optim=replace(config.optim, lr=1e-4),  # the papers'; the presets' own may change with a sweep
        train=replace(config.train, images=images, batch=BATCH, out=str(out), log_every=BATCH, tensorboard=False),
        eval=replace(config.eval, name="none"),
    )
    for section, fields in sections.items():
        config = replace(config, **{section: replace(getattr(config, section), **fields)})
    return config
