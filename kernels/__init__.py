"""Fused operations for diffusion transformers, usable without the rest of erw. Imports torch and triton, never erw.

One file per operation: formula, plain reference, kernels, public function and a `Spec`. ``SPECS`` lists them; contract
tests, ahead-of-time compilation and benchmarks loop over it.
"""

from erw.kernels import adaln_modulate as _adaln_modulate
from erw.kernels import adamw_ema as _adamw_ema
from erw.kernels import bias_gelu as _bias_gelu
from erw.kernels import cosine_alignment as _cosine_alignment
from erw.kernels import flow_interpolate as _flow_interpolate
from erw.kernels import gated_residual as _gated_residual
from erw.kernels import gated_residual_adaln as _gated_residual_adaln
from erw.kernels import nt_xent_alignment as _nt_xent_alignment
from erw.kernels import nt_xent_in_image as _nt_xent_in_image
from erw.kernels import qk_norm_rope as _qk_norm_rope
from erw.kernels import velocity_mse as _velocity_mse
from erw.kernels._norm import clip_coefficient, grad_norm_sq
from erw.kernels._spec import Case, Spec
from erw.kernels.adaln_modulate import adaln_modulate
from erw.kernels.adamw_ema import adamw_ema, adamw_ema_list
from erw.kernels.attention import attention
from erw.kernels.bias_gelu import bias_gelu
from erw.kernels.cosine_alignment import cosine_alignment
from erw.kernels.flow_interpolate import flow_interpolate
from erw.kernels.gated_residual import gated_residual
from erw.kernels.gated_residual_adaln import gated_residual_adaln
from erw.kernels.nt_xent_alignment import nt_xent_alignment
from erw.kernels.nt_xent_in_image import nt_xent_in_image
from erw.kernels.qk_norm_rope import qk_norm_rope
from erw.kernels.velocity_mse import velocity_mse

SPECS: tuple[Spec, ...] = (
    _adaln_modulate.SPEC,
    _adamw_ema.SPEC,
    _bias_gelu.SPEC,
    _cosine_alignment.SPEC,
    _flow_interpolate.SPEC,
    _gated_residual.SPEC,
    _gated_residual_adaln.SPEC,
    _nt_xent_alignment.SPEC,
    _nt_xent_in_image.SPEC,
    _qk_norm_rope.SPEC,
    _velocity_mse.SPEC,
)

__all__ = [
    "SPECS",
    "Case",
    "Spec",
    "adaln_modulate",
    "adamw_ema",
    "adamw_ema_list",
    "attention",
    "bias_gelu",
    "clip_coefficient",
    "cosine_alignment",
    "flow_interpolate",
    "gated_residual",
    "gated_residual_adaln",
    "grad_norm_sq",
    "nt_xent_alignment",
    "nt_xent_in_image",
    "qk_norm_rope",
    "velocity_mse",
]
