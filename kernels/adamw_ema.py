"""AdamW and an exponential moving average (EMA) of the weights in one pass, in place (Loshchilov & Hutter 2019, Alg. 2).

    g = grad_scale * grad,  count = step + 1
    m <- beta1 m + (1 - beta1) g,  v <- beta2 v + (1 - beta2) g^2                                    exp_avg, exp_avg_sq
    p <- (1 - lr weight_decay) p - lr / (1 - beta1^count) * m / (sqrt(v) / sqrt(1 - beta2^count) + eps)            param
    ema <- ema + (1 - ema_decay) (p - ema),  copy <- p rounded to 16 bits

Nothing is written where ``keep`` is 0, whatever the gradient holds. Moves 32 bytes an element, the gradient and the copy.
There is no backward. What all elements share (bias corrections, in fp64, clip coefficient, skip) one small program works
out first, which also advances ``step``: the host waits for nothing, and a CUDA graph may replay it if lr is a tensor.

Not for parameters that are not fp32. A list costs a launch for each tensor: under ZeRO it holds one flat shard, and
without it, making many tensors one would move every gradient once more, or take its allocation from autograd.
"""

import math
from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from erw.kernels import apex
from erw.kernels._adamw import Rates, adamw_ema_reference, laid_out_as, run_compiled, run_plain, run_twin, same_layout
from erw.kernels._check import FLOATS, dense
from erw.kernels._launch import device_of, launch, runs_kernels
from erw.kernels._norm import sum_of_squares
from erw.kernels._spec import Case, Inputs, Spec, telling_rows

_BLOCK = 1024  # elements a program of 8 warps does: every fp32 access of a thread is one of 128 bits, nothing changes layout


@triton.jit
def _prepare_kernel(
    step_ptr, grad_scale_ptr, keep_ptr, lr_ptr, shared_ptr, lr, log_beta1, log_beta2, weight_decay,
):  # fmt: skip
    # One program of one warp, whose threads read the step at once, before one of them writes it.
    grad_scale, keep = 1.0, 1.0
    if grad_scale_ptr is not None:
        grad_scale = tl.load(grad_scale_ptr)
    if keep_ptr is not None:
        keep = tl.load(keep_ptr)
    if lr_ptr is not None:
        lr = tl.load(lr_ptr)
    count = tl.load(step_ptr) + keep
    correction1 = 1.0 - tl.exp2(count.to(tl.float64) * log_beta1)
    correction2 = 1.0 - tl.exp2(count.to(tl.float64) * log_beta2)
    tl.store(step_ptr, count)
    tl.store(shared_ptr, grad_scale)
    tl.store(shared_ptr + 1, keep)
    tl.store(shared_ptr + 2, 1.0 - lr * weight_decay)
    tl.store(shared_ptr + 3, (-lr / correction1).to(tl.float32))
    tl.store(shared_ptr + 4, tl.sqrt(correction2).to(tl.float32))


@triton.jit
def _update_tile(
    param_ptr, grad_ptr, exp_avg_ptr, exp_avg_sq_ptr, ema_ptr, copy_ptr, shared_ptr,
    beta1, rest1, beta2, rest2, eps, follow, place, mask,
):  # fmt: skip
    param = tl.load(param_ptr + place, mask=mask)
    grad = tl.load(grad_ptr + place, mask=mask).to(tl.float32)
    exp_avg = tl.load(exp_avg_ptr + place, mask=mask)
    exp_avg_sq = tl.load(exp_avg_sq_ptr + place, mask=mask)
    ema = tl.load(ema_ptr + place, mask=mask)
    grad_scale, keep = tl.load(shared_ptr), tl.load(shared_ptr + 1)
    shrink, size, root = tl.load(shared_ptr + 2), tl.load(shared_ptr + 3), tl.load(shared_ptr + 4)
    # Loads above do not wait for the branch.
    if keep != 0.0:
        grad = grad * grad_scale
        exp_avg = beta1 * exp_avg + rest1 * grad
        exp_avg_sq = beta2 * exp_avg_sq + rest2 * grad * grad
        denominator = tl.div_rn(tl.sqrt_rn(exp_avg_sq), root) + eps
        param = shrink * param + size * tl.div_rn(exp_avg, denominator)
        ema += follow * (param - ema)
        tl.store(exp_avg_ptr + place, exp_avg, mask=mask)
        tl.store(exp_avg_sq_ptr + place, exp_avg_sq, mask=mask)
        tl.store(param_ptr + place, param, mask=mask)
        tl.store(ema_ptr + place, ema, mask=mask)
        if copy_ptr is not None:
            tl.store(copy_ptr + place, param.to(copy_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _update_kernel(
    param_ptr, grad_ptr, exp_avg_ptr, exp_avg_sq_ptr, ema_ptr, copy_ptr, shared_ptr,
    beta1, rest1, beta2, rest2, eps, follow, numel, BLOCK: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * BLOCK
    place = first + tl.arange(0, BLOCK)
    # Without a mask accesses are 128 bits wide whatever numel is.
    if first + BLOCK <= numel:
        _update_tile(param_ptr, grad_ptr, exp_avg_ptr, exp_avg_sq_ptr, ema_ptr, copy_ptr, shared_ptr,
                     beta1, rest1, beta2, rest2, eps, follow, place, None)  # fmt: skip
    else:
        _update_tile(param_ptr, grad_ptr, exp_avg_ptr, exp_avg_sq_ptr, ema_ptr, copy_ptr, shared_ptr,
                     beta1, rest1, beta2, rest2, eps, follow, place, place < numel)  # fmt: skip


def _run_kernels(params, grads, exp_avgs, exp_avg_sqs, emas, copies, steps, rates: Rates, grad_scale, keep) -> None:
    lr, beta1, beta2, eps, weight_decay, ema_decay = rates
    shared = steps[0].new_empty(5)
    lr_ptr, lr = (lr, 0.0) if isinstance(lr, Tensor) else (None, float(lr))
    log1, log2 = (math.log2(beta) if beta else -math.inf for beta in (beta1, beta2))
    constants = [float(c) for c in (beta1, 1 - beta1, beta2, 1 - beta2, eps, 1 - ema_decay)]
    if len(steps) > 1:
        torch._foreach_add_(steps[1:], 1.0 if keep is None else [keep] * (len(steps) - 1))
    with device_of(shared):
        launch(
            _prepare_kernel, (1,), steps[0], grad_scale, keep, lr_ptr, shared, lr, log1, log2, float(weight_decay),
            num_warps=1,
        )  # fmt: skip
        for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
            launch(
                _update_kernel, (triton.cdiv(param.numel(), _BLOCK),), param, laid_out_as(grad, param), exp_avgs[i],
                exp_avg_sqs[i], emas[i], copies[i] if copies else None, shared, *constants, param.numel(),
                num_warps=8, BLOCK=_BLOCK,
            )  # fmt: skip


def _check(kernels: bool, params, grads, exp_avgs, exp_avg_sqs, emas, copies, scalars: dict[str, Tensor | None]) -> None:
    """Raise ValueError for a tensor that does not fit; fp64 is for the plain formulas only."""
    masters = (torch.float32,) if kernels else (torch.float32, torch.float64)
    floats = FLOATS if kernels else (*FLOATS, torch.float64)
    columns = {"grad": grads, "param": params, "exp_avg": exp_avgs, "exp_avg_sq": exp_avg_sqs, "ema": emas}
    for name, tensors in (columns | ({"copy": copies} if copies else {})).items():
        wanted = floats if name in ("grad", "copy") else masters
        for tensor, param in zip(tensors, params, strict=True):
            if tensor.dtype not in wanted:
                raise ValueError(f"{name} is {tensor.dtype}, should be {' or '.join(map(str, wanted))}")
            if tensor.device != param.device:
                raise ValueError(f"{name} is on {tensor.device}, should be on {param.device} as param is")
            if tensor.shape != param.shape:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}, should be {tuple(param.shape)} as param's")
            if name != "grad" and not same_layout(tensor, param):
                raise ValueError(f"{name} has strides {tensor.stride()}, should be {param.stride()} as param's")
    for param in params:
        if not dense(param):
            raise ValueError(f"param has strides {param.stride()}, should be dense: call .contiguous()")
    for name, scalar in scalars.items():
        if not isinstance(scalar, Tensor):
            continue
        if scalar.dtype not in masters:
            raise ValueError(f"{name} is {scalar.dtype}, should be {' or '.join(map(str, masters))}")
        if scalar.dim() or scalar.device != params[0].device:
            found = f"{tuple(scalar.shape)} on {scalar.device}"
            raise ValueError(f"{name} has shape {found}, should be () on {params[0].device}")


def _step(
    param: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, ema: Tensor, copy: Tensor | None, step: Tensor,
    lr: float, lr_tensor: Tensor | None, beta1: float, beta2: float, eps: float, weight_decay: float, ema_decay: float,
    grad_scale: Tensor | None, keep: Tensor | None,
) -> None:  # fmt: skip
    rates = Rates(lr if lr_tensor is None else lr_tensor, beta1, beta2, eps, weight_decay, ema_decay)
    copies = None if copy is None else [copy]
    run = _run_kernels if runs_kernels(param) else run_twin
    run([param], [grad], [exp_avg], [exp_avg_sq], [ema], copies, [step], rates, grad_scale, keep)


_WRITTEN = ("param", "exp_avg", "exp_avg_sq", "ema", "copy", "step")
_step_op = torch.library.custom_op("erw::adamw_ema", _step, mutates_args=_WRITTEN)


@_step_op.register_fake
def _(*_):
    return None


@torch.no_grad()
def adamw_ema(
    param: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, ema: Tensor, *, step: Tensor, lr: float | Tensor,
    beta1: float, beta2: float, eps: float, weight_decay: float, ema_decay: float, grad_scale: Tensor | None = None,
    keep: Tensor | None = None, copy: Tensor | None = None,
) -> None:  # fmt: skip
    """One step of AdamW and the EMA of the weights, in place.

    param, exp_avg, exp_avg_sq, ema   fp32, one shape, dense, of one layout
    grad             fp32, bf16 or fp16 of that shape, in any layout
    step, grad_scale, keep, lr   0-d fp32 on the same device: steps taken so far (advanced here), factor on the gradient,
                     1 or 0 (everything stays as it was, the step too); a float lr is the same for every replay of a graph
    copy             fp32, bf16 or fp16: gets the new weights, rounded

    Raises ValueError for arguments that do not fit.
    """
    kernels = runs_kernels(param)
    scalars = {"step": step, "lr": lr, "grad_scale": grad_scale, "keep": keep}
    _check(kernels, [param], [grad], [exp_avg], [exp_avg_sq], [ema], None if copy is None else [copy], scalars)
    number, tensor = (0.0, lr) if isinstance(lr, Tensor) else (float(lr), None)
    _step_op(param, grad, exp_avg, exp_avg_sq, ema, copy, step, number, tensor, beta1, beta2, eps, weight_decay, ema_decay,
             grad_scale, keep)  # fmt: skip


@torch.no_grad()
def adamw_ema_list(
    params: list[Tensor], grads: list[Tensor], exp_avgs: list[Tensor], exp_avg_sqs: list[Tensor], emas: list[Tensor], *,
    steps: list[Tensor], lr: float | Tensor, beta1: float, beta2: float, eps: float, weight_decay: float, ema_decay: float,
    grad_scale: Tensor | None = None, keep: Tensor | None = None, copies: list[Tensor] | None = None, kernels: bool = True,
    compiled: bool = False,
) -> None:  # fmt: skip
    """`adamw_ema` of several tensors on one device that have taken as many steps, each with its own counter in ``steps``.

    On a CPU, or without ``kernels``, it is the plain formulas, even under Triton's interpreter, which would take hours
    over a model; ``compiled``: on a CPU by torch.compile, in one pass, which needs a C++ compiler.
    """
    if not params:
        return
    rates = Rates(lr, beta1, beta2, eps, weight_decay, ema_decay)
    on_cuda = params[0].is_cuda
    kernels = kernels and on_cuda
    scalars = {f"steps[{i}]": step for i, step in enumerate(steps)} | {"lr": lr, "grad_scale": grad_scale, "keep": keep}
    _check(kernels, params, grads, exp_avgs, exp_avg_sqs, emas, copies, scalars)
    run = _run_kernels if kernels else run_plain if on_cuda else run_compiled if compiled else run_twin
    run(params, grads, exp_avgs, exp_avg_sqs, emas, copies, steps, rates, grad_scale, keep)
    torch.autograd.graph.increment_version([*params, *exp_avgs, *exp_avg_sqs, *emas, *(copies or [])])


_RATES = {"beta1": 0.9, "beta2": 0.99, "eps": 1e-3, "ema_decay": 0.8}  # under which every part of the formulas shows


def _pure(update: Callable[..., None]) -> Callable[..., tuple[Tensor, ...]]:
    """``update`` on copies of its arguments, as the contract wants it: (param, exp_avg, exp_avg_sq, ema, step, copy)."""

    def pure(grad, param, exp_avg, exp_avg_sq, ema, step, lr, grad_scale, keep, *, weight_decay=0.0, half=None, skip=False):
        param, exp_avg, exp_avg_sq, ema, step = (t.clone() for t in (param, exp_avg, exp_avg_sq, ema, step))
        copy = None if half is None else torch.zeros_like(param, dtype=half if param.dtype == torch.float32 else param.dtype)
        shared = {"lr": lr, "grad_scale": grad_scale, "keep": torch.zeros_like(keep) if skip else keep}
        update(param, grad, exp_avg, exp_avg_sq, ema, step=step, weight_decay=weight_decay, copy=copy, **shared, **_RATES)
        return param, exp_avg, exp_avg_sq, ema, step, copy

    return pure


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    shape = (case.batch, case.tokens, case.width)
    grad, exp_avg, spread = torch.randn((3, *shape), generator=generator, dtype=torch.float64).unbind()
    scalars = {"step": 3.0, "lr": 0.05, "grad_scale": 0.5, "keep": 1.0}
    return {
        "grad": grad,
        "param": telling_rows(shape, generator),
        "exp_avg": exp_avg * 0.1,
        "exp_avg_sq": spread.square() * 0.01,
        "ema": telling_rows(shape, generator),
    } | {name: torch.tensor(value, dtype=torch.float64) for name, value in scalars.items()}


def _trace(grad, param, exp_avg, exp_avg_sq, ema, step, lr, grad_scale, keep) -> None:
    rest = [exp_avg], [exp_avg_sq], [ema]
    for gradient in (grad, grad.float()):
        sum_of_squares(gradient)
        for copies in (None, [torch.empty_like(grad)]):
            for rate in (lr, 1e-4):
                for scalars in ((None, None), (grad_scale, keep)):
                    rates = Rates(rate, 0.9, 0.999, 1e-8, 0.0, 0.9999)
                    _run_kernels([param], [gradient], *rest, copies, [step], rates, *scalars)


def _traffic(case: Case, stream: int, matmul: int) -> tuple[int, int]:
    return case.batch * case.tokens * case.width * (32 + 2 * matmul), 0


def _timed(provider: str, inputs: Inputs, options: dict) -> Callable[[], None]:
    update = {"kernel": adamw_ema, "eager": adamw_ema_reference, "apex": apex.adamw_ema}[provider]
    given = {name: tensor.clone() for name, tensor in inputs.items()}
    if provider == "apex":  # which takes these from the host, and skips no step
        given |= {"lr": float(given["lr"]), "step": int(given["step"])}
        del given["keep"]
    copy = torch.empty_like(given["param"], dtype=options["half"])
    return lambda: update(**given, copy=copy, weight_decay=0.0, **_RATES)


SPEC = Spec(
    name="adamw_ema",
    op=_pure(adamw_ema),
    reference=_pure(adamw_ema_reference),
    inputs=_inputs,
    roles={"grad": "matmul"}
    | dict.fromkeys(("param", "exp_avg", "exp_avg_sq", "ema", "step", "lr", "grad_scale", "keep"), "float32"),
    grads=(),
    options={
        "clipped": {"half": torch.bfloat16},
        "decayed": {"half": torch.float16, "weight_decay": 0.1},
        "skipped": {"half": torch.bfloat16, "weight_decay": 0.1, "skip": True},
        "bare": {"lr": 0.1, "grad_scale": None, "keep": None},
    },
    trace=_trace,
    traffic=_traffic,
    timed=_timed,
)
