"""The plain formulas of `erw.kernels.adamw_ema`: its reference, and its twin for CPUs.

The twin goes over slices that stay in cache, AdamW in torch's own pass; compiled, all of it is one pass.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from erw.kernels._check import dense

_THREADED = 2**15  # elements from which on it pays a CPU to share them out
_SLICE = 2**18  # elements: five such fp32 arrays fit into a CPU's caches, and a loop over them is longer than its start


class Rates(NamedTuple):
    """What a step takes besides tensors of the weights' size."""

    lr: float | Tensor
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    ema_decay: float


class _Shared(NamedTuple):
    """What all elements share, Python floats or 0-d tensors."""

    forget1: float | Tensor
    rest1: float
    forget2: float | Tensor
    rest2: float
    shrink: float | Tensor | None
    size: Tensor
    root: Tensor
    eps: float
    follow: float | Tensor


def _shared(step: Tensor, rates: Rates, keep: Tensor | None) -> _Shared:
    """For a ``step`` already advanced. ``keep`` = 0 makes factors of one or nought, which leave their targets as they were."""
    lr, beta1, beta2, eps, weight_decay, ema_decay = rates
    kept = 1.0 if keep is None else keep
    count = step.clamp(min=1.0)
    return _Shared(
        forget1=1 - (1 - beta1) * kept,
        rest1=1 - beta1,
        forget2=1 - (1 - beta2) * kept,
        rest2=1 - beta2,
        shrink=1 - lr * weight_decay * kept if weight_decay else None,
        size=-lr * kept / (1 - beta1**count),
        root=(1 - beta2**count).sqrt(),
        eps=eps,
        follow=(1 - ema_decay) * kept,
    )


def _apply(shared: _Shared, params, grads, exp_avgs, exp_avg_sqs, emas) -> None:
    """The formulas over lists of tensors. Recorded runs depend on the order of these operations."""
    torch._foreach_mul_(exp_avgs, shared.forget1)
    torch._foreach_add_(exp_avgs, grads, alpha=shared.rest1)
    torch._foreach_mul_(exp_avg_sqs, shared.forget2)
    torch._foreach_addcmul_(exp_avg_sqs, grads, grads, value=shared.rest2)
    if shared.shrink is not None:
        torch._foreach_mul_(params, shared.shrink)
    denominators = torch._foreach_sqrt(exp_avg_sqs)
    torch._foreach_div_(denominators, shared.root)
    torch._foreach_add_(denominators, shared.eps)
    updates = torch._foreach_div(exp_avgs, denominators)
    torch._foreach_mul_(updates, shared.size)
    torch._foreach_add_(params, updates)
    differences = torch._foreach_sub(params, emas)
    torch._foreach_mul_(differences, shared.follow)
    torch._foreach_add_(emas, differences)


def run_plain(params, grads, exp_avgs, exp_avg_sqs, emas, copies, steps, rates: Rates, grad_scale, keep) -> None:
    """`adamw_ema_list` in plain PyTorch without branches, on any device and in any float dtype."""
    grads = [grad.to(param.dtype) for grad, param in zip(grads, params, strict=True)]
    if grad_scale is not None:
        grads = torch._foreach_mul(grads, grad_scale)
    if keep is not None:
        grads = [torch.where(keep > 0, grad, 0.0) for grad in grads]
    # A list of tensors, where torch would read one tensor back on a CPU.
    torch._foreach_add_(steps, 1.0 if keep is None else [keep] * len(steps))
    _apply(_shared(steps[0], rates, keep), params, grads, exp_avgs, exp_avg_sqs, emas)
    for param, copy in zip(params, copies, strict=True) if copies else ():
        copy.copy_(param if keep is None else torch.where(keep > 0, param, copy))


@torch.no_grad()
def adamw_ema_reference(
    param: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, ema: Tensor, *, step: Tensor, lr: float | Tensor,
    beta1: float, beta2: float, eps: float, weight_decay: float, ema_decay: float, grad_scale: Tensor | None = None,
    keep: Tensor | None = None, copy: Tensor | None = None,
) -> None:  # fmt: skip
    """See `adamw_ema`; plain PyTorch without branches, on any device and in any float dtype."""
    rates = Rates(lr, beta1, beta2, eps, weight_decay, ema_decay)
    copies = None if copy is None else [copy]
    run_plain([param], [grad], [exp_avg], [exp_avg_sq], [ema], copies, [step], rates, grad_scale, keep)


def _flat(tensor: Tensor) -> Tensor:
    return tensor.as_strided((tensor.numel(),), (1,))


def same_layout(a: Tensor, b: Tensor) -> bool:
    """Whether elements of equal index lie at equal places in both."""
    return a.stride() == b.stride() or (a.is_contiguous() and b.is_contiguous())


def laid_out_as(tensor: Tensor, other: Tensor) -> Tensor:
    """``tensor``, copied where its layout is not ``other``'s."""
    return tensor if same_layout(tensor, other) else torch.empty_like(other, dtype=tensor.dtype).copy_(tensor)


Update = Callable[[list[Tensor], Tensor | None, Tensor | None], None]


def run_twin(params, grads, exp_avgs, exp_avg_sqs, emas, copies, steps, rates: Rates, grad_scale, keep) -> None:
    """`adamw_ema_list` on CPUs, where reading ``keep`` makes nobody wait."""
    _run(_sliced, params, grads, exp_avgs, exp_avg_sqs, emas, copies, steps, rates, grad_scale, keep)


def run_compiled(params, grads, exp_avgs, exp_avg_sqs, emas, copies, steps, rates: Rates, grad_scale, keep) -> None:
    """`run_twin` by torch.compile: one pass, for which a C++ compiler must be there."""
    _run(_compiled, params, grads, exp_avgs, exp_avg_sqs, emas, copies, steps, rates, grad_scale, keep)


def _run(way: Callable[[Tensor, Rates], Update], params, grads, exp_avgs, exp_avg_sqs, emas, copies, steps, rates, grad_scale,
         keep) -> None:  # fmt: skip
    if keep is not None and not keep:
        return
    torch._foreach_add_(steps, 1.0)
    update = way(steps[0], rates)
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        if param.numel():
            tensors = [param, laid_out_as(grad, param), exp_avgs[i], exp_avg_sqs[i], emas[i]]
            update([_flat(t) for t in tensors], _flat(copies[i]) if copies else None, grad_scale)


def _sliced(step: Tensor, rates: Rates) -> Update:
    settings = {"lr": rates.lr, "beta1": rates.beta1, "beta2": rates.beta2, "weight_decay": rates.weight_decay,
                "eps": rates.eps, "amsgrad": False, "maximize": False}  # fmt: skip

    def update(tensors: list[Tensor], copy: Tensor | None, grad_scale: Tensor | None) -> None:
        copies = [None] * (-(-tensors[0].numel() // _SLICE)) if copy is None else copy.split(_SLICE)
        for (p, g, m, v, e), c in zip(zip(*(t.split(_SLICE) for t in tensors), strict=True), copies, strict=True):
            g = g.to(p.dtype) if grad_scale is None else g.to(p.dtype) * grad_scale
            torch._fused_adamw_([p], [g], [m], [v], [], [step], **settings)
            e.lerp_(p, 1 - rates.ema_decay)
            if c is not None:
                c.copy_(p)

    return update


def _compiled(step: Tensor, rates: Rates) -> Update:
    # A rate that changes is a tensor, or each value of it would be compiled.
    shared = _shared(step, rates._replace(lr=torch.as_tensor(rates.lr, dtype=step.dtype)), None)

    def update(tensors: list[Tensor], copy: Tensor | None, grad_scale: Tensor | None) -> None:
        _compiled_for(_apply_to_one, tensors[0].numel() >= _THREADED)(shared, *tensors, copy, grad_scale)

    return update


@cache
def _compiled_for(function: Callable, threaded: bool) -> Callable:
    """For tensors of any size; told to, as the compiler would go by the size of the first, it shares them out to threads."""
    return torch.compile(function, dynamic=True, options={"cpp.min_chunk_size": 1 if threaded else 2 * _THREADED})


def squares_compiled(gradients: list[Tensor]) -> list[Tensor]:
    """The sum of squares of each, 0-d fp32 (fp64 for fp64), for CPUs: a pass over 16-bit gradients without a copy in fp32."""
    flat = [_flat(grad) if dense(grad) else grad.flatten() for grad in gradients]
    return [_compiled_for(_squares, grad.numel() >= _THREADED)(grad) for grad in flat]


def _squares(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32)).square().sum()


def _apply_to_one(shared: _Shared, param, grad, exp_avg, exp_avg_sq, ema, copy, grad_scale) -> None:
    grad = grad.to(param.dtype) if grad_scale is None else grad.to(param.dtype) * grad_scale
    _apply(shared, [param], [grad], [exp_avg], [exp_avg_sq], [ema])
    if copy is not None:
        copy.copy_(param)
