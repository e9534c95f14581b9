"""The backbone of SiT (Ma et al., arXiv 2401.08740) and DiT (Peebles & Xie, arXiv 2212.09748), which are one network.

What its output means is the objective's business. A plain module on one device: no distributed code, no method code.
Parameter names are those of the public SiT, DiT and REPA checkpoints.
Shapes: B samples, C channels, S input size, P patch, T = (S / P)^2 tokens, D width.
"""

from dataclasses import dataclass
from itertools import islice
from typing import Literal

import torch
from torch import Tensor, nn

from erw.errors import UserError
from erw.models.blocks import FinalLayer, SiTBlock
from erw.models.embed import LabelEmbedder, PatchEmbed, TableModule, TimestepEmbedder, rope_table, sincos_table
from erw.models.recompute import checkpointed
from erw.ops import REFERENCE, OpSet, for_cpu_compiler
from erw.settings import setting

SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}


@dataclass(frozen=True, kw_only=True)
class SiTConfig:
    """Everything that decides the weights' names and shapes, and how the forward computes."""

    depth: int = setting(28, "number of blocks")
    width: int = setting(1152, "width D of the residual stream")
    num_heads: int = setting(16, "attention heads; they divide the width")
    patch_size: int = setting(2, "side of a patch, in latent pixels")
    input_size: int = setting(32, "side S of the latent; the patch size divides it")
    in_channels: int = setting(4, "channels of the latent")
    num_classes: int = setting(1000, "classes; the null class of guidance is one more")
    mlp_ratio: float = setting(4.0, "hidden width of the MLP over D")
    qk_norm: bool = setting(False, "LayerNorm of queries and keys, per head")
    learn_sigma: bool = setting(False, "twice the output channels: DiT's variance; public SiT networks have them unused")
    rope: bool = setting(False, "2D rotary positions beside the sine-cosine table")
    residual_dtype: Literal["float32", "bfloat16"] = setting("float32", "dtype of the residual stream under bf16")

    def __post_init__(self):
        for name in ("depth", "width", "num_heads", "patch_size", "input_size", "in_channels", "num_classes"):
            if getattr(self, name) < 1:
                raise UserError(f"--model.{name} must be at least 1, not {getattr(self, name)}")
        if self.width % self.num_heads:
            raise UserError(f"--model.num_heads {self.num_heads} does not divide --model.width {self.width}")
        if self.input_size % self.patch_size:
            raise UserError(f"--model.patch_size {self.patch_size} does not divide --model.input_size {self.input_size}")
        if self.width % 4:
            raise UserError(f"--model.width {self.width} must be a multiple of 4 for the 2D position table")
        if self.rope and (self.width // self.num_heads) % 4:
            raise UserError(f"--model.rope needs a head width that 4 divides, not {self.width // self.num_heads}")

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return self.in_channels * (2 if self.learn_sigma else 1)

    @property
    def grid(self) -> int:
        """Tokens on a side."""
        return self.input_size // self.patch_size

    @property
    def tokens(self) -> int:
        """Tokens T."""
        return self.grid**2


def sized(name: str, **rest) -> SiTConfig:
    """The published size ``name`` such as ``XL/2`` (SiT, Table 1): S, B, L or XL at patch 2, 4 or 8."""
    size, _, patch = name.partition("/")
    if size not in SIZES or patch not in {"2", "4", "8"}:
        raise UserError(f"model size '{name}' is not known; known: {', '.join(SIZES)} with /2, /4 or /8")
    depth, width, num_heads = SIZES[size]
    return SiTConfig(depth=depth, width=width, num_heads=num_heads, patch_size=int(patch), **rest)


@dataclass(frozen=True)
class SiTOutput:
    """prediction (B, C or 2C, S, S), None where there is no final layer; taps: block (from 1) to its output (B, T, D)."""

    prediction: Tensor | None
    taps: dict[int, Tensor]


class SiT(TableModule):
    """The backbone. t is fed to a sinusoid as it is: 0..1 for a flow (1 is noise), 0..999 for a DDPM."""

    def __init__(self, config: SiTConfig, ops: OpSet = REFERENCE):
        super().__init__()
        self.config, self.ops = config, ops
        self.recompute: Literal["none", "selective", "full"] = "none"
        self.first_block = 1
        width = config.width
        self.x_embedder = PatchEmbed(config.in_channels, config.patch_size, width)
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = LabelEmbedder(config.num_classes, width)
        self.register_buffer("pos_embed", sincos_table(config.grid, width))
        rope = rope_table(config.grid, width // config.num_heads) if config.rope else None
        self.register_buffer("rope", rope, persistent=False)
        self.blocks = nn.ModuleList(
            SiTBlock(width, config.num_heads, config.mlp_ratio, config.qk_norm, ops) for _ in range(config.depth)
        )
        self.final_layer: FinalLayer | None = FinalLayer(width, config.patch_size, config.out_channels, ops)
        self._initialize()

    def _initialize(self) -> None:
        """Xavier for Linears, zero for adaLN and the output: each block starts as the identity (DiT, Sec. 3.2)."""
        self.apply(init_linear)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
        nn.init.zeros_(self.x_embedder.proj.bias)
        nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        nn.init.normal_(self.t_embedder.mlp[0].weight, std=0.02)
        nn.init.normal_(self.t_embedder.mlp[2].weight, std=0.02)
        for layer in (*(block.adaLN_modulation[1] for block in self.blocks), self.final_layer.adaLN_modulation[1],
                      self.final_layer.linear):  # fmt: skip
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def keep_span(self, first: int, last: int) -> "SiT":
        """Drop all but the embedders and blocks ``first`` to ``last`` (from 1): nothing is stored for what does not run.

        The blocks that stay keep their names.
        """
        del self.blocks[last:]
        for number in range(1, first):
            self.blocks[number - 1] = nn.Identity()
        self.first_block, self.final_layer = first, None
        return self

    def compile_blocks(self, device: torch.device) -> None:
        """torch.compile of each block that runs, in place, for fixed shapes on ``device``: parameters keep their names and
        hooks."""
        ops, options = self.ops, None
        if device.type == "cpu":
            from erw.kernels._cpu_compiler import OPTIONS

            ops, options = for_cpu_compiler(ops), OPTIONS
        for block in self.blocks[self.first_block - 1 :]:
            block.mlp.ops = block.ops = ops
            block.compile(dynamic=False, options=options)

    def forward(self, x: Tensor, t: Tensor, y: Tensor, taps: tuple[int, ...] = ()) -> SiTOutput:
        """x (B, C, S, S), t (B,) fp32, y (B,) int64 labels (num_classes: none)."""
        residual = torch.promote_types(x.dtype, torch.float32)
        if self.config.residual_dtype == "bfloat16" and self.x_embedder.proj.weight.dtype != torch.float64:
            residual = torch.bfloat16
        x = (self.x_embedder(x.to(self.x_embedder.proj.weight.dtype)) + self.pos_embed).to(residual)
        c = self.t_embedder(t) + self.y_embedder(y)
        tapped = {}
        blocks = list(islice(self.blocks, self.first_block - 1, None))
        modulations = self.ops.modulations(c, [block.adaLN_modulation for block in blocks])
        for number, (block, modulation) in enumerate(zip(blocks, modulations, strict=True), start=self.first_block):
            given = (x, modulation, self.rope)
            x = checkpointed(block, self.recompute, *given) if self.training else block(*given)
            if number in taps:
                tapped[number] = x
        return SiTOutput(None if self.final_layer is None else self._unpatchify(self.final_layer(x, c)), tapped)

    def _unpatchify(self, x: Tensor) -> Tensor:
        """(B, T, P * P * C) to (B, C, S, S)."""
        grid, patch, channels = self.config.grid, self.config.patch_size, self.config.out_channels
        x = x.unflatten(1, (grid, grid)).unflatten(-1, (patch, patch, channels))
        return x.permute(0, 5, 1, 3, 2, 4).reshape(x.shape[0], channels, grid * patch, grid * patch)


def init_linear(module: nn.Module) -> None:
    """Xavier-uniform weight and zero bias, the default of every Linear here."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
