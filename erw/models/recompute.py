"""Activation checkpointing: what a block keeps for its backward."""

from collections.abc import Callable

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

_aten = torch.ops.aten
# The expensive results. Everything between them is memory-bound and cheap to compute again.
_KEPT = {
    _aten.mm.default,
    _aten.addmm.default,
    _aten.bmm.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
}


def _keep_matmuls(context, op, *args, **kwargs) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE


def checkpointed(block: Callable, mode: str, *args):
    """``block(*args)``, keeping everything (``none``), matmul and attention results (``selective``) or only ``args``
    (``full``) for the backward. Torch's non-reentrant form, which works under every ZeRO stage."""
    if mode == "none":
        return block(*args)
    # Nothing in a block draws random numbers, so their state need not be stored.
    options = {"use_reentrant": False, "preserve_rng_state": False}
    if mode == "selective":
        options["context_fn"] = lambda: create_selective_checkpoint_contexts(_keep_matmuls)
    return checkpoint(block, *args, **options)
