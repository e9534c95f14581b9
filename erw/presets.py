"""Runs by name. A preset is a function; its docstring says what to expect of it. Options override single settings."""

from collections.abc import Callable
from dataclasses import replace

from erw.align import Erw, Method, Plain, Repa
from erw.config import RunConfig, TrainConfig
from erw.data import DataConfig
from erw.engine.config import EngineConfig
from erw.errors import UserError
from erw.evaluate import EvalConfig
from erw.flops import train_flops
from erw.latents import LatentConfig
from erw.models.sit import SiTConfig, sized
from erw.objectives import Ddpm, Flow, Objective
from erw.optim import OptimConfig
from erw.plan import images_for_budget
from erw.samplers import SampleConfig
from erw.settings import nearest
from erw.teachers import TeacherConfig

PRESETS: dict[str, Callable[[], TrainConfig]] = {}


def preset(name: str) -> TrainConfig:
    """The settings called ``name``. Raises `UserError` for an unknown name."""
    if name not in PRESETS:
        raise UserError(f"preset '{name}' is not known; {nearest(name, PRESETS)}")
    return PRESETS[name]()


# ---- embedded digits: minutes on a CPU ------------------------------------------------------------------------------

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


PRESETS |= {"digits-sit": digits_sit, "digits-repa": digits_repa, "digits-erw": digits_erw}
PRESETS |= {"digits-dit": digits_dit, "digits-dit-repa": digits_dit_repa, "digits-dit-erw": digits_dit_erw}


# ---- ImageNet 256x256, SD-VAE latents: the papers' settings -----------------------------------------------------------


def _in256(name: str, size: str, method: Method, rope: bool = False) -> TrainConfig:
    return TrainConfig(
        model=sized(size, rope=rope),
        method=method,
        train=RunConfig(out=f"runs/{name}"),
        data=DataConfig(name="arrays", path="data/imagenet256", workers=4),
        latents=LatentConfig(kind="vae"),
        teacher=TeacherConfig(name="dinov2-b" if method.needs_teacher else "none"),
        engine=EngineConfig(ds_config="zero2"),
    )


def _as_dit(config: TrainConfig, name: str) -> TrainConfig:
    """The same run with DiT's objective and sampler: 250 ancestral steps, guidance (when asked for) on three channels."""
    return replace(
        config,
        model=replace(config.model, learn_sigma=True),
        objective=Ddpm(),
        train=replace(config.train, out=f"runs/{name}"),
        sample=SampleConfig(sampler="ddpm", steps=250, guidance_channels=3),
    )


# Blocks: (REPA's depth, ERW's warm-up depth, ERW's projection depth).
# REPA: its repository's depths. ERW: XL is the paper's Table 3 (third version), B its Table 5, L and S scaled from these.
_DEPTHS = {"s2": (4, 8, 8), "b2": (4, 8, 8), "l2": (8, 4, 15), "xl2": (8, 5, 18)}


# FID without guidance as published; none of it has been reproduced with this code.
_PUBLISHED = {
    ("dit", "xl2"): "9.62 after 7M steps (DiT, Table 2)",
    ("sit", "xl2"): "8.3 after 7M steps (REG, Table 1)",
    ("repa", "xl2"): "19.4 / 11.1 / 7.9 after 100K / 200K / 400K steps (REG, Table 1)",
    ("repa", "b2"): "78.2 after 50K steps (ERW, Table 7)",
    ("erw", "xl2"): "12.1 after 100K warm-up and 100K full steps (ERW, Table 2)",
    ("erw", "b2"): "51.7 after 50K full steps (ERW, Table 7)",
}


def _imagenet(size: str) -> None:
    """Register the three presets of one size."""
    depth, warm, projection = _DEPTHS[size]
    published = f"{size[:-1].upper()}/2"
    erw_settings = f"100K warm-up steps of {warm} blocks, projection at {projection}, lambda 0.5, RoPE"
    rows = {
        "sit": (Plain(), False, f"SiT-{published} as published: batch 256, lr 1e-4, 400K steps (SiT, Sec. 4)."),
        "repa": (Repa(depth=depth), False, f"SiT-{published} with REPA: DINOv2-B, block {depth}, lambda 0.5 (REPA, Sec. 4)."),
        "erw": (Erw(depth=warm, projection_depth=projection), True, f"SiT-{published} with ERW v3: {erw_settings}."),
    }
    for method, (settings, rope, text) in rows.items():
        name = f"in256-{method}-{size}"

        def build(name=name, settings=settings, rope=rope) -> TrainConfig:
            return _in256(name, published, settings, rope)

        build.__doc__ = f"{text}\n\n    Published FID: {_PUBLISHED.get((method, size), 'none for this size')}."
        PRESETS[name] = build


def _imagenet_dit(size: str) -> None:
    """Register the three DiT presets of one size."""
    for method, row in (("sit", "dit"), ("repa", "dit-repa"), ("erw", "dit-erw")):
        name, base = f"in256-{row}-{size}", PRESETS[f"in256-{method}-{size}"]

        def build(name=name, base=base, method=method) -> TrainConfig:
            config = _as_dit(base(), name)
            # DiT's own code does not clip gradients; with alignment it is trained by REPA's, which does.
            return replace(config, optim=replace(config.optim, clip=0.0)) if method == "sit" else config

        aligned = {"sit": "as published", "repa": "with REPA", "erw": "with ERW v3, which published no DiT"}[method]
        text = f"DiT-{size[:-1].upper()}/2 {aligned}: DDPM, learned variance, batch 256, lr 1e-4; else in256-{method}-{size}."
        build.__doc__ = f"{text}\n\n    Published FID: {_PUBLISHED.get((row, size), 'none for this size')}."
        PRESETS[name] = build


for _size in _DEPTHS:
    _imagenet(_size)
for _size in ("l2", "xl2"):
    _imagenet_dit(_size)


def in256_erw_xl2_released() -> TrainConfig:
    """ERW as its released code is set (the paper's first version): depth 4, projection 14, 6 * 2^(-k / 50K steps).

    Not expected to be better; it is here for comparison with that code's settings.
    """
    base = PRESETS["in256-erw-xl2"]()
    method = Erw(depth=4, projection_depth=14, coefficient=6.0, decay="half-life", decay_images=50_000 * 256)
    return replace(base, method=method, train=replace(base.train, out="runs/in256-erw-xl2-released"))


PRESETS["in256-erw-xl2-released"] = in256_erw_xl2_released
