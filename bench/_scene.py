"""What a step is measured on: model shape, tokens and batch, and what follows from them."""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from erw.align.base import Method
from erw.align.erw import Erw
from erw.align.repa import Repa
from erw.bench.reference import LATENT_SCALE
from erw.errors import UserError
from erw.flops import train_flops
from erw.models.sit import SiTConfig, sized
from erw.presets import preset
from erw.types import Phase, TeacherSpec

TINY = SiTConfig(depth=2, width=64, num_heads=4, input_size=8, num_classes=10)
PhaseName = Literal["full", "warmup"]


@dataclass(frozen=True)
class Scene:
    """Model shape and batch. Teacher features are cached: 768 wide, one for each token.

    model   ``tiny`` or a published size such as ``XL/2``
    tokens  an image's; None: the model's own (256 at patch 2)
    """

    model: str
    batch: int
    tokens: int | None = None
    feature_width: int = 768

    @property
    def config(self) -> SiTConfig:
        """Raises `UserError` for a model that is not known and for tokens that are no square."""
        config = TINY if self.model == "tiny" else sized(self.model)
        if self.tokens is None:
            return config
        grid = math.isqrt(max(0, self.tokens))
        if grid < 1 or grid**2 != self.tokens:
            raise UserError(f"--tokens takes squares such as 256 and 1024, not {self.tokens}")
        return replace(config, input_size=grid * config.patch_size)

    @property
    def teacher(self) -> TeacherSpec:
        """Whose features the batch holds."""
        return TeacherSpec(name="cached", width=self.feature_width, grid=self.config.grid)

    @property
    def encoder_depth(self) -> int:
        """The aligned block of the full phase: the published default, 8, or the last of a smaller model."""
        return min(8, self.config.depth)

    def training(self, phase: PhaseName) -> tuple[Method, Phase]:
        """REPA's step, or that of ERW's warm-up."""
        method = self._erw() if phase == "warmup" else Repa(depth=self.encoder_depth)
        return method, method.phase(0)

    def _erw(self) -> Method:
        """As its preset has it: 5 of XL's 28 blocks."""
        if self.model == "tiny":
            return Erw(depth=1)
        return preset(f"in256-erw-{self.model.partition('/')[0].lower()}2").method

    def flops_per_image(self, phase: PhaseName = "full") -> int:
        """Training FLOPs of one image: three forwards of what runs of the backbone, and of the projector (`erw.flops`)."""
        method, at = self.training(phase)
        return train_flops(self.config, method, at, (self.teacher,))

    def inputs(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """VAE moments (B, 2C, S, S) fp32, labels (B,) int64, teacher features (B, T, F) fp32."""
        config, generator = self.config, torch.Generator(device=device).manual_seed(0)
        size = (self.batch, config.in_channels, config.input_size, config.input_size)
        mean = torch.randn(size, generator=generator, device=device) / LATENT_SCALE
        moments = torch.cat([mean, torch.full_like(mean, 0.1)], dim=1)
        labels = torch.randint(config.num_classes, (self.batch,), generator=generator, device=device)
        features = torch.randn((self.batch, config.tokens, self.feature_width), generator=generator, device=device)
        return moments, labels, features

    def halved(self) -> "Scene":
        """The same at half the batch, for where this one does not fit."""
        return replace(self, batch=self.batch // 2)
