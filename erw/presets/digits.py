"""Runs on the embedded digits: minutes on a CPU."""

from collections.abc import Callable
from dataclasses import replace

from erw.align import Erw, Method, Plain, Repa
from erw.config import RunConfig, TrainConfig
from erw.data import DataConfig
from erw.engine.config import EngineConfig
from erw.evaluate import EvalConfig
from erw.flops import train_flops
from erw.models.sit import SiTConfig
from erw.objectives import Ddpm, Flow, Objective
from erw.optim import OptimConfig
from erw.plan import images_for_budget
from erw.samplers import SampleConfig
from erw.teachers import TeacherConfig

# Every digits run spends what 25,600 images of plain SiT cost; a method whose images cost more sees fewer of them. The
# teacher's cache, 0.4% more, is in the run's accounts but not in this count.
_DIGITS_MODEL = SiTConfig(depth=4, width=96, num_heads=3, patch_size=2, input_size=8, in_channels=1, num_classes=10)
_DIGITS_BATCH = 32
_DIGITS_FLOPS = 25_600 * train_flops(_DIGITS_MODEL, Plain(), Plain().phase(0), ())


def digits_run(name: str, method: Method, lr: float, warmup_share: float = 0.0, objective: Objective | None = None,
               teacher: str = "digits-contrastive") -> TrainConfig:  # fmt: skip
    """A run on the digits at the common budget. ``warmup_share`` is the part of it that ERW's first phase spends."""
    objective = objective or Flow()
    ddpm = isinstance(objective, Ddpm)
    config = TrainConfig(
        model=replace(_DIGITS_MODEL, learn_sigma=ddpm),
        method=method,
        objective=objective,
        optim=OptimConfig(lr=lr, ema_half_life=2560),
        train=RunConfig(batch=_DIGITS_BATCH, out=f"runs/{name}", save_every=0, log_every=320),
        data=DataConfig(name="digits"),
        teacher=TeacherConfig(name=teacher if method.needs_teacher else "none"),
        engine=EngineConfig(ds_config="zero0", precision="fp32"),
        sample=SampleConfig(sampler="ddim", steps=50) if ddpm else SampleConfig(sampler="ode", steps=20),
        eval=EvalConfig(name="digits", count=640),
    )
    if isinstance(method, Erw):
        warmup = images_for_budget(config, warmup_share * _DIGITS_FLOPS)
        config = replace(config, method=replace(method, warmup_images=warmup))
    images = images_for_budget(config, _DIGITS_FLOPS)
    every = -(-images // (4 * _DIGITS_BATCH)) * _DIGITS_BATCH  # rounded up: the fourth evaluation is the last image's
    return replace(config, train=replace(config.train, images=images), eval=replace(config.eval, every=every))


# Settings below are the best of eight trials each (bench/results/sweep-digits.json); results are in the README.


def digits_sit() -> TrainConfig:
    """SiT on the digits, no alignment: Frechet distance about 4.6, accuracy about 0.88."""
    return digits_run("digits-sit", Plain(), lr=3e-3)


def digits_repa() -> TrainConfig:
    """REPA on the digits: Frechet distance about 2.9, accuracy about 0.93."""
    return digits_run("digits-repa", Repa(depth=2, coefficient=2.0, projector_width=96), lr=4e-3)


def digits_erw() -> TrainConfig:
    """ERW on the digits, a tenth of the FLOPs in the warm-up: Frechet distance about 2.3, accuracy about 0.94."""
    method = Erw(depth=2, projection_depth=3, coefficient=1.0, projector_width=96)
    return digits_run("digits-erw", method, lr=4e-3, warmup_share=0.1)


def digits_dit() -> TrainConfig:
    """DiT on the digits: a DDPM instead of a flow. Its settings are digits-sit's, not chosen for it."""
    return digits_run("digits-dit", Plain(), lr=3e-3, objective=Ddpm())


def digits_dit_repa() -> TrainConfig:
    """DiT with REPA on the digits. Its settings are digits-repa's, not chosen for it."""
    return digits_run("digits-dit-repa", digits_repa().method, lr=4e-3, objective=Ddpm())


def digits_dit_erw() -> TrainConfig:
    """DiT with ERW on the digits. Its settings are digits-erw's, not chosen for it."""
    return digits_run("digits-dit-erw", digits_erw().method, lr=4e-3, warmup_share=0.1, objective=Ddpm())


DIGITS: dict[str, Callable[[], TrainConfig]] = {
    "digits-sit": digits_sit,
    "digits-repa": digits_repa,
    "digits-erw": digits_erw,
    "digits-dit": digits_dit,
    "digits-dit-repa": digits_dit_repa,
    "digits-dit-erw": digits_dit_erw,
}
