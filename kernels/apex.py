"""NVIDIA apex behind our signatures: FusedLayerNorm with the modulation after it, and FusedAdam's step with the EMA after it.

For those who have apex already, and as rows beside ours in `erw.bench.kernels`. apex has no kernel for the modulation or
for the EMA, so these stay passes of their own. Needs a CUDA device and apex built from source with its CUDA extensions.

Written from apex's published interface: it never ran against the real package here, only against a stand-in of the same
signatures.
"""

import importlib
import importlib.util

import torch
from torch import Tensor

from erw.kernels._check import check_shape
from erw.kernels.adaln_modulate import EPS

_PARTS = ("apex.normalization.fused_layer_norm", "apex.multi_tensor_apply", "fused_layer_norm_cuda", "amp_C")


def missing(device: torch.device) -> str | None:
    """Why apex cannot be used on ``device``, in a line; None where it can."""
    if importlib.util.find_spec("apex") is None:
        return "not installed"
    try:
        for part in _PARTS:
            importlib.import_module(part)
    except ImportError as error:
        return f"not NVIDIA's, or built without its CUDA extensions ({error})"
    return None if device.type == "cuda" else "needs a CUDA device"


def _part(name: str):
    """The module ``name`` of apex. Raises ImportError with one line that says where apex is to be had."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"NVIDIA apex is missing ({error}): build it from source with its CUDA extensions (github.com/NVIDIA/apex); the"
            " package called apex on the package index is another project"
        ) from None


def adaln_modulate(x: Tensor, *, shift: Tensor, scale: Tensor, eps: float = EPS) -> Tensor:
    """`erw.kernels.adaln_modulate` on apex's fused_layer_norm: x (B, T, D); shift, scale (B, D), any of fp32, bf16, fp16.

    Returns (B, T, D) in the dtype of ``shift``. The normed x is rounded to the dtype of x before the modulation, which is
    fp32. Raises ImportError without apex, ValueError for shapes that do not fit.
    """
    layer_norm = _part("apex.normalization.fused_layer_norm").fused_layer_norm
    check_shape("x", x, (None, None, None), "B T D")
    for name, tensor in (("shift", shift), ("scale", scale)):
        check_shape(name, tensor, (x.shape[0], x.shape[2]), "B D")
    with torch.autocast(x.device.type, enabled=False):  # under which apex would round x
        normed = layer_norm(x, [x.shape[-1]], eps).float()
    return (normed * (1 + scale.float().unsqueeze(1)) + shift.float().unsqueeze(1)).to(shift.dtype)


@torch.no_grad()
def adamw_ema_list(
    params: list[Tensor], grads: list[Tensor], exp_avgs: list[Tensor], exp_avg_sqs: list[Tensor], emas: list[Tensor], *,
    step: int, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, ema_decay: float,
    grad_scale: Tensor | None = None, copies: list[Tensor] | None = None,
) -> None:  # fmt: skip
    """`erw.kernels.adamw_ema_list` on apex's multi_tensor_adam, in place.

    What differs: ``step`` (steps taken so far) and ``lr`` are numbers of the host, the caller counts; there is no ``keep``,
    so a step that is not finite cannot be skipped on the device; the factor on the gradients and their cast to fp32 are
    passes of their own. Raises ImportError without apex, ValueError for parameters that are not fp32.
    """
    apply, adam = _part("apex.multi_tensor_apply").multi_tensor_applier, _part("amp_C").multi_tensor_adam
    if not params:
        return
    for name, tensors in (("param", params), ("exp_avg", exp_avgs), ("exp_avg_sq", exp_avg_sqs), ("ema", emas)):
        for tensor in tensors:
            if tensor.dtype != torch.float32:
                raise ValueError(f"{name} is {tensor.dtype}, should be torch.float32")
    grads = [grad.to(torch.float32) for grad in grads]
    if grad_scale is not None:
        grads = torch._foreach_mul(grads, grad_scale)
    overflow = torch.zeros(1, dtype=torch.int32, device=params[0].device)
    decoupled, bias_correction = 1, 1
    lists = [grads, params, exp_avgs, exp_avg_sqs]
    apply(adam, overflow, lists, lr, beta1, beta2, eps, step + 1, decoupled, bias_correction, weight_decay)
    torch._foreach_lerp_(emas, params, 1 - ema_decay)
    if copies:
        torch._foreach_copy_(copies, params)
    torch.autograd.graph.increment_version([*params, *exp_avgs, *exp_avg_sqs])


def adamw_ema(
    param: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, ema: Tensor, *, copy: Tensor | None = None, **rest
) -> None:  # fmt: skip
    """`adamw_ema_list` of one tensor."""
    lists = ([tensor] for tensor in (param, grad, exp_avg, exp_avg_sq, ema))
    adamw_ema_list(*lists, copies=None if copy is None else [copy], **rest)
