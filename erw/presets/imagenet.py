"""ImageNet at 256x256 and 512x512, SD-VAE latents of 32x32 and 64x64: the papers' settings."""

from collections.abc import Callable
from dataclasses import replace

from erw.align import Erw, Method, Plain, Repa
from erw.config import RunConfig, TrainConfig
from erw.data import DataConfig
from erw.engine.config import EngineConfig
from erw.latents import LatentConfig
from erw.models.sit import sized
from erw.objectives import Ddpm
from erw.samplers import SampleConfig
from erw.teachers import TeacherConfig

IMAGENET: dict[str, Callable[[], TrainConfig]] = {}

# Blocks: (REPA's depth, ERW's warm-up depth, ERW's projection depth).
# REPA: its repository's depths. ERW: XL is the paper's Table 3 (third version), B its Table 5, L and S scaled from these.
DEPTHS = {"s2": (4, 8, 8), "b2": (4, 8, 8), "l2": (8, 4, 15), "xl2": (8, 5, 18)}

# FID without guidance as published; none of it has been reproduced with this code.
_PUBLISHED = {
    (256, "dit", "xl2"): "9.62 after 7M steps (DiT, Table 2)",
    (256, "sit", "xl2"): "8.3 after 7M steps (REG, Table 1)",
    (256, "repa", "xl2"): "19.4 / 11.1 / 7.9 after 100K / 200K / 400K steps (REG, Table 1)",
    (256, "repa", "b2"): "78.2 after 50K steps (ERW, Table 7)",
    (256, "erw", "xl2"): "12.1 after 100K warm-up and 100K full steps (ERW, Table 2)",
    (256, "erw", "b2"): "51.7 after 50K full steps (ERW, Table 7)",
}


def _settings(name: str, side: int, size: str, method: Method, rope: bool = False) -> TrainConfig:
    return TrainConfig(
        model=sized(size, rope=rope, input_size=side // 8),
        method=method,
        train=RunConfig(out=f"runs/{name}"),
        data=DataConfig(name="arrays", path=f"data/imagenet{side}", workers=4),
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


def _sit(side: int, size: str) -> None:
    """Register the three SiT presets of one size."""
    depth, warm, projection = DEPTHS[size]
    published = f"{size[:-1].upper()}/2"
    at = "" if side == 256 else f" at {side}x{side}, {(side // 16) ** 2:,} tokens"
    erw_settings = f"100K warm-up steps of {warm} blocks, projection at {projection}, lambda 0.5, RoPE"
    rows = {
        "sit": (Plain(), False, f"SiT-{published} as published{at}: batch 256, lr 1e-4, 400K steps (SiT, Sec. 4)."),
        "repa": (Repa(depth=depth), False,
                 f"SiT-{published} with REPA{at}: DINOv2-B, block {depth}, lambda 0.5 (REPA, Sec. 4)."),
        "erw": (Erw(depth=warm, projection_depth=projection), True, f"SiT-{published} with ERW v3{at}: {erw_settings}."),
    }  # fmt: skip
    for method, (settings, rope, text) in rows.items():
        name = f"in{side}-{method}-{size}"

        def build(name=name, settings=settings, rope=rope) -> TrainConfig:
            return _settings(name, side, published, settings, rope)

        build.__doc__ = f"{text}\n\n    Published FID: {_PUBLISHED.get((side, method, size), 'none that we keep')}."
        IMAGENET[name] = build


def _dit(side: int, size: str) -> None:
    """Register the three DiT presets of one size."""
    for method, row in (("sit", "dit"), ("repa", "dit-repa"), ("erw", "dit-erw")):
        name, base = f"in{side}-{row}-{size}", IMAGENET[f"in{side}-{method}-{size}"]

        def build(name=name, base=base, method=method) -> TrainConfig:
            config = _as_dit(base(), name)
            # DiT's own code does not clip gradients; with alignment it is trained by REPA's, which does.
            return replace(config, optim=replace(config.optim, clip=0.0)) if method == "sit" else config

        aligned = {"sit": "as published", "repa": "with REPA", "erw": "with ERW v3, which published no DiT"}[method]
        as_sit = f"else in{side}-{method}-{size}"
        text = f"DiT-{size[:-1].upper()}/2 {aligned}: DDPM, learned variance, batch 256, lr 1e-4; {as_sit}."
        build.__doc__ = f"{text}\n\n    Published FID: {_PUBLISHED.get((side, row, size), 'none that we keep')}."
        IMAGENET[name] = build


for _side in (256, 512):
    for _size in DEPTHS:
        _sit(_side, _size)
    for _size in ("l2", "xl2"):
        _dit(_side, _size)


def in256_erw_xl2_released() -> TrainConfig:
    """ERW as its released code is set (the paper's first version): depth 4, projection 14, 6 * 2^(-k / 50K steps).

    Not expected to be better; it is here for comparison with that code's settings.
    """
    base = IMAGENET["in256-erw-xl2"]()
    method = Erw(depth=4, projection_depth=14, coefficient=6.0, decay="half-life", decay_images=50_000 * 256)
    return replace(base, method=method, train=replace(base.train, out="runs/in256-erw-xl2-released"))


IMAGENET["in256-erw-xl2-released"] = in256_erw_xl2_released
