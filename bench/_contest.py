"""Who is measured against whom: contestants, the scene they share, and the order of pairings."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from erw.align.repa import Repa
from erw.bench.ours import OurStep
from erw.bench.published import Published
from erw.bench.reference import LATENT_SCALE, Precision, ReferenceSiT
from erw.bench.reference_step import ReferenceStep
from erw.flops import train_flops
from erw.models.sit import SiTConfig, sized
from erw.ops import OpSet
from erw.types import TeacherSpec

TINY = SiTConfig(depth=2, width=64, num_heads=4, input_size=8, num_classes=10)
Step = Callable[[Tensor, Tensor, Tensor], dict]


@dataclass(frozen=True)
class Contestant:
    """One training step to be timed. ``precision``: autocast's dtype, for ours that of the weights."""

    code: Literal["ours", "reference", "published"]
    precision: Precision
    compile: bool = False

    @property
    def label(self) -> str:
        """As it stands in the table."""
        return f"{self.code} {self.precision}" + (" compiled" if self.compile else "")


@dataclass(frozen=True)
class Pairing:
    """A rival and ours, measured in turn on the same model shape and batch."""

    model: str
    batch: int
    rival: Contestant
    ours: Contestant

    def halved(self) -> "Pairing":
        """The same at half the batch, for where this one does not fit."""
        return replace(self, batch=self.batch // 2)


@dataclass(frozen=True)
class Scene:
    """Model shape and batch, and what follows from them. Teacher features are cached: 768 wide, one for each token."""

    config: SiTConfig
    batch: int
    feature_width: int = 768

    @property
    def encoder_depth(self) -> int:
        """The aligned block: the published default, 8, or the last of a smaller model."""
        return min(8, self.config.depth)

    @property
    def flops_per_image(self) -> int:
        """Training FLOPs of one image: three forwards of backbone and projector (`erw.flops`)."""
        method = Repa(depth=self.encoder_depth)
        teacher = TeacherSpec(name="cached", width=self.feature_width, grid=self.config.grid)
        return train_flops(self.config, method, method.phase(0), (teacher,))

    def inputs(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """VAE moments (B, 2C, S, S) fp32, labels (B,) int64, teacher features (B, T, F) fp32."""
        config, generator = self.config, torch.Generator(device=device).manual_seed(0)
        size = (self.batch, config.in_channels, config.input_size, config.input_size)
        mean = torch.randn(size, generator=generator, device=device) / LATENT_SCALE
        moments = torch.cat([mean, torch.full_like(mean, 0.1)], dim=1)
        labels = torch.randint(config.num_classes, (self.batch,), generator=generator, device=device)
        features = torch.randn((self.batch, config.tokens, self.feature_width), generator=generator, device=device)
        return moments, labels, features


def shape_of(model: str) -> SiTConfig:
    """The configuration called ``model``: ``tiny``, or a published size."""
    return TINY if model == "tiny" else sized(model)


def build(contestant: Contestant, scene: Scene, device: torch.device, published: Published | None, ops: OpSet) -> Step:
    """The training step of ``contestant``, freshly initialised on ``device``."""
    shape = {"encoder_depth": scene.encoder_depth, "feature_width": scene.feature_width}
    if contestant.code == "ours":
        dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[contestant.precision]
        return OurStep(
            scene.config, device=device, batch=scene.batch, dtype=dtype, compile=contestant.compile, ops=ops, **shape
        )
    options = {"device": device, "precision": contestant.precision, "compile": contestant.compile}
    with device:
        if contestant.code == "published":
            return ReferenceStep(published.model(scene.config, **shape), losses=published.losses(), **options)
        return ReferenceStep(ReferenceSiT(scene.config, **shape), **options)


def plan(models: list[str], batches: list[int], *, compile: bool, published: Precision | None) -> list[Pairing]:
    """Pairings, the most telling first: by batch, then by kind of rival, then by model.

    ``published`` is the precision in which the published code itself joins at the first batch; None leaves it out.
    """
    eager, compiled = Contestant("ours", "bf16"), Contestant("ours", "bf16", compile=True)
    found = []
    for batch in batches:
        rivals = [(Contestant("reference", "fp16"), eager)]
        if compile:
            rivals.append((Contestant("reference", "bf16", compile=True), compiled))
        if published and batch == batches[0]:
            rivals.append((Contestant("published", published), eager))
        rivals.append((Contestant("reference", "bf16"), eager))
        found += [Pairing(model, batch, rival, ours) for rival, ours in rivals for model in models]
    return found
