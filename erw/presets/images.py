"""Runs on a user's own images, and on CIFAR-10 as pixels."""

from collections.abc import Callable

from erw.align import Erw, Method, Plain, Repa
from erw.config import RunConfig, TrainConfig
from erw.data import DataConfig
from erw.engine.config import EngineConfig
from erw.latents import LatentConfig
from erw.models.sit import sized
from erw.presets.imagenet import DEPTHS
from erw.teachers import TeacherConfig

IMAGES: dict[str, Callable[[], TrainConfig]] = {}

_STEP = 256  # images


def _methods(size: str, warmup: int) -> dict[str, tuple[Method, bool, str]]:
    """(method, RoPE, words) by name: the settings that ImageNet's presets have at this size, but for the warm-up's length."""
    depth, warm, projection = DEPTHS[size]
    erw = Erw(depth=warm, projection_depth=projection, warmup_images=warmup * _STEP)
    return {
        "sit": (Plain(), False, "no alignment"),
        "repa": (Repa(depth=depth), False, f"REPA at block {depth}, lambda 0.5"),
        "erw": (erw, True, f"ERW v3: {warmup // 1000}K warm-up steps of {warm} blocks, projection at {projection}, RoPE"),
    }


def _folder(method: str) -> None:
    """Register a preset of B/2 on any dataset that ``erw prepare`` wrote."""
    settings, rope, words = _methods("b2", warmup=10_000)[method]

    def build() -> TrainConfig:
        return TrainConfig(
            model=sized("B/2", rope=rope),
            method=settings,
            train=RunConfig(images=50_000 * _STEP, out=f"runs/folder-{method}", save_every=2_560_000),
            data=DataConfig(name="arrays", fit=True, workers=4),
            engine=EngineConfig(ds_config="zero2"),
        )

    build.__doc__ = f"""B/2 on your own images: {words}; 50K steps in all.

    Classes, latents, autoencoder and teachers are the dataset's (--data.path). Nothing is published of it.
    """
    IMAGES[f"folder-{method}"] = build


def _cifar10(method: str, size: str) -> None:
    """Register a preset on CIFAR-10: 32x32 pixels, whose 256 tokens are ImageNet-256's."""
    settings, rope, words = _methods(size, warmup=10_000)[method]
    published = f"{size[:-1].upper()}/2"

    def build() -> TrainConfig:
        return TrainConfig(
            model=sized(published, rope=rope, in_channels=3, num_classes=10),
            method=settings,
            train=RunConfig(images=50_000 * _STEP, out=f"runs/cifar10-{method}-{size}", save_every=2_560_000),
            data=DataConfig(name="arrays", path="data/cifar10", workers=2),
            latents=LatentConfig(kind="pixels"),
            teacher=TeacherConfig(name="efficientnet-lite0" if settings.needs_teacher else "none"),
            engine=EngineConfig(ds_config="zero2"),
        )

    build.__doc__ = f"""SiT-{published} on CIFAR-10's pixels, 256 tokens: {words}; batch 256, lr 1e-4, 50K steps in all.

    Nothing is published of it.
    """
    IMAGES[f"cifar10-{method}-{size}"] = build


for _method in ("sit", "repa", "erw"):
    _folder(_method)
    for _size in ("s2", "b2"):
        _cifar10(_method, _size)
