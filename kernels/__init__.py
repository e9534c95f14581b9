"""Fused operations for diffusion transformers, usable without the rest of erw. Imports torch and triton, never erw.

One file per operation; ``SPECS`` lists them, and the contract tests and benchmarks loop over it. No kernel has landed
yet: until one does, models run the plain PyTorch operations of ``erw.ops``, whose names and shapes kernels take over.
"""

SPECS: tuple = ()
