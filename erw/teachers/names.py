"""The field's usual teachers by short names: which of timm's models each is. ``timm:MODEL`` names any other one.

Width, patch and class token stand here so that settings are checked without building a model; a test holds them against
timm's own.
"""

from dataclasses import dataclass, field
from typing import Any

# Less than this many pixels a side is not what these encoders were made for.
LEAST_SIDE = 192


@dataclass(frozen=True)
class TimmModel:
    """``model``: timm's name with its tag. ``on_hub`` False: weights come from a file only; ``options`` go to timm."""

    model: str
    width: int
    patch: int
    class_token: bool = True
    on_hub: bool = True
    options: dict[str, Any] = field(default_factory=dict)
    least: int = LEAST_SIDE


_S, _B, _L, _H, _SO, _G = 384, 768, 1024, 1280, 1152, 1536

SHORT_NAMES: dict[str, TimmModel] = {
    "dinov2-s": TimmModel("vit_small_patch14_dinov2.lvd142m", _S, 14),
    "dinov2-b": TimmModel("vit_base_patch14_dinov2.lvd142m", _B, 14),
    "dinov2-l": TimmModel("vit_large_patch14_dinov2.lvd142m", _L, 14),
    "dinov2-g": TimmModel("vit_giant_patch14_dinov2.lvd142m", _G, 14),
    "dinov2-reg-s": TimmModel("vit_small_patch14_reg4_dinov2.lvd142m", _S, 14),
    "dinov2-reg-b": TimmModel("vit_base_patch14_reg4_dinov2.lvd142m", _B, 14),
    "dinov2-reg-l": TimmModel("vit_large_patch14_reg4_dinov2.lvd142m", _L, 14),
    "dinov2-reg-g": TimmModel("vit_giant_patch14_reg4_dinov2.lvd142m", _G, 14),
    "dinov3-s": TimmModel("vit_small_patch16_dinov3.lvd1689m", _S, 16),
    "dinov3-s-plus": TimmModel("vit_small_plus_patch16_dinov3.lvd1689m", _S, 16),
    "dinov3-b": TimmModel("vit_base_patch16_dinov3.lvd1689m", _B, 16),
    "dinov3-l": TimmModel("vit_large_patch16_dinov3.lvd1689m", _L, 16),
    "dinov3-h-plus": TimmModel("vit_huge_plus_patch16_dinov3.lvd1689m", _H, 16),
    "dino-s": TimmModel("vit_small_patch16_224.dino", _S, 16),
    "dino-b": TimmModel("vit_base_patch16_224.dino", _B, 16),
    "dino-b8": TimmModel("vit_base_patch8_224.dino", _B, 8),
    "mae-b": TimmModel("vit_base_patch16_224.mae", _B, 16),
    "mae-l": TimmModel("vit_large_patch16_224.mae", _L, 16),
    "mae-h": TimmModel("vit_huge_patch14_224.mae", _H, 14),
    "ijepa-h": TimmModel("vit_huge_patch14_gap_224.in1k_ijepa", _H, 14, class_token=False),
    "clip-b": TimmModel("vit_base_patch16_clip_224.openai", _B, 16),
    "clip-l": TimmModel("vit_large_patch14_clip_224.openai", _L, 14),
    "siglip-b": TimmModel("vit_base_patch16_siglip_gap_256.webli", _B, 16, class_token=False),
    "siglip2-b": TimmModel("vit_base_patch16_siglip_gap_256.v2_webli", _B, 16, class_token=False),
    "siglip2-l": TimmModel("vit_large_patch16_siglip_gap_256.v2_webli", _L, 16, class_token=False),
    "siglip2-so400m": TimmModel("vit_so400m_patch14_siglip_gap_224.v2_webli", _SO, 14, class_token=False),
    "pe-core-s": TimmModel("vit_pe_core_small_patch16_384.fb", _S, 16),
    "pe-core-b": TimmModel("vit_pe_core_base_patch16_224.fb", _B, 16),
    "pe-core-l": TimmModel("vit_pe_core_large_patch14_336.fb", _L, 14),
    "pe-core-g": TimmModel("vit_pe_core_gigantic_patch14_448.fb", _G, 14, class_token=False),
    "pe-spatial-s": TimmModel("vit_pe_spatial_small_patch16_512.fb", _S, 16),
    "pe-spatial-b": TimmModel("vit_pe_spatial_base_patch16_512.fb", _B, 16),
    "pe-spatial-l": TimmModel("vit_pe_spatial_large_patch14_448.fb", _L, 14),
    "pe-spatial-g": TimmModel("vit_pe_spatial_gigantic_patch14_448.fb", _G, 14, class_token=False),
    # MoCo v3 published its weights as files, not on the hub: DINO's network (its small one with twelve heads), same pixels.
    "mocov3-s": TimmModel("vit_small_patch16_224.dino", _S, 16, on_hub=False, options={"num_heads": 12}),
    "mocov3-b": TimmModel("vit_base_patch16_224.dino", _B, 16, on_hub=False),
    "mocov3-l": TimmModel("vit_large_patch16_224.mae", _L, 16, on_hub=False),
}
