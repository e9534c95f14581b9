"""Attention backends and kernels, tried on this device."""

import torch

from erw.doctor.checks import Finding
from erw.kernels.attention import BACKENDS, Problem, unusable
from erw.kernels.contract import Case, broken


def attention(device: torch.device) -> Finding:
    """Backends that do XL's heads, forward and backward."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    problem = Problem(1, 2, 64, 72, dtype, device)
    works = [name for name in BACKENDS if unusable(name, problem) is None]
    if "sdpa" not in works:
        return Finding("bad", "attention", f"sdpa cannot run: {unusable('sdpa', problem)}", "mend torch")
    if device.type == "cuda" and not {"flash", "efficient", "cudnn", "fa2", "fa3", "fa4"} & set(works):
        return Finding("warn", "attention", f"only {', '.join(works)}", "no fused backend: attention will be slow")
    return Finding("ok", "attention", ", ".join(works))


def kernels(device: torch.device) -> Finding:
    """Every kernel against its fp64 reference, as ``--engine.ops auto`` checks them."""
    if device.type != "cuda":
        return Finding("ok", "kernels", "not tried: they run on CUDA devices only; here --engine.ops auto is reference")
    faults = broken(Case(batch=2, tokens=64, width=1152, heads=16), "mixed", device.type)
    if faults:
        mend = "--engine.ops auto falls back to reference; please report this"
        return Finding("warn", "kernels", "; ".join(faults)[:300], mend)
    return Finding("ok", "kernels", "every kernel keeps its contract")
