"""Fused operations for diffusion transformers, usable without the rest of erw. Imports torch and triton, never erw.

One file per operation: formula, plain reference, kernels, public function and a `Spec`. ``SPECS`` lists them; contract
tests, ahead-of-time compilation and benchmarks loop over it.
"""

from erw.kernels import adaln_modulate as _adaln_modulate
from erw.kernels._spec import Case, Spec
from erw.kernels.adaln_modulate import adaln_modulate

SPECS: tuple[Spec, ...] = (_adaln_modulate.SPEC,)

__all__ = ["SPECS", "Case", "Spec", "adaln_modulate"]
