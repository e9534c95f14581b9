"""NT-Xent of tokens against a teacher's, with the other tokens of the same image as negatives.

    l_nm = cos(z_bn, u_bm) / tau,  out_b = mean_n (logsumexp_m l_nm - l_nn)          z, target u (B, N, D)
    dz as in `nt_xent_alignment`, with tokens in place of a group's images            no gradient for the target

The same kernels with tokens for rows and columns (see _contrast.py), so the same is saved and moved: logits are never in
memory. Up to 64 tokens are one tile of columns; 256 or 1,024 are four or sixteen.

Not where the target needs a gradient. In fp32 there are no tensor cores: give both in bf16 where that will do.
"""

import torch
from torch import Tensor

from erw.kernels._check import check_floats, check_shape
from erw.kernels._contrast import contrast_backward, contrast_forward, fake_forward, trace
from erw.kernels._launch import runs_kernels
from erw.kernels._spec import Case, Inputs, Spec, telling_rows
from erw.kernels.nt_xent_alignment import check_tau, contrast_reference

_IMAGES = 16  # of which the reference holds logits at a time


def nt_xent_in_image_reference(z: Tensor, target: Tensor, *, tau: float) -> Tensor:
    """See `nt_xent_in_image`; plain PyTorch, on any device and in any float dtype."""
    positive = torch.arange(z.shape[1], device=z.device)
    parts = zip(z.split(_IMAGES), target.split(_IMAGES), strict=True)
    return torch.cat([contrast_reference(*part, positive, tau).mean(dim=1) for part in parts])


def _forward(z: Tensor, target: Tensor, tau: float) -> tuple[Tensor, Tensor, Tensor]:
    return contrast_forward(z, target, 0, z.shape[1], tau, in_image=True)


def _backward(z: Tensor, target: Tensor, dout: Tensor, rows: Tensor, target_norm: Tensor, tau: float) -> Tensor:
    return contrast_backward(z, target, dout, rows, target_norm, 0, z.shape[1], tau, in_image=True)


_forward_op = torch.library.custom_op("erw::nt_xent_in_image", _forward, mutates_args=())
_backward_op = torch.library.custom_op("erw::nt_xent_in_image_backward", _backward, mutates_args=())


@_forward_op.register_fake
def _(z, target, tau):
    return fake_forward(z, target)


@_backward_op.register_fake
def _(z, target, dout, rows, target_norm, tau):
    return z.new_empty(z.shape)


def _save(ctx, inputs, output):
    z, target, ctx.tau = inputs
    ctx.save_for_backward(z, target, *output[1:])
    ctx.set_materialize_grads(False)  # the statistics get none


def _differentiate(ctx, dout, *_):
    z, target, *statistics = ctx.saved_tensors
    return _backward_op(z, target, dout, *statistics, ctx.tau), None, None


_forward_op.register_autograd(_differentiate, setup_context=_save)


def nt_xent_in_image(z: Tensor, target: Tensor, *, tau: float) -> Tensor:
    """Cross-entropy, at temperature ``tau``, of telling each token's own place among the target's tokens of its image;
    averaged over a sample's tokens.

    z, target (B, N, D), any of fp32, bf16, fp16, also mixed; the target gets no gradient. Returns (B,) fp32. On a CPU
    (without Triton's interpreter) the plain PyTorch form computes it. Raises ValueError for arguments that do not fit.
    """
    check_shape("z", z, (None, None, None), "B N D")
    check_shape("target", target, tuple(z.shape), "B N D")
    check_tau(tau)
    if not runs_kernels(z):
        return nt_xent_in_image_reference(z, target, tau=tau)
    check_floats(z=z, target=target)
    return _forward_op(z, target, tau)[0]


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    shape = (case.batch, case.tokens, case.width)
    return {"z": telling_rows(shape, generator), "target": telling_rows(shape, generator)}


def _trace(z: Tensor, target: Tensor) -> None:
    trace(z, in_image=True)


def _traffic(case: Case, stream: int, matmul: int) -> tuple[int, int]:
    elements = case.batch * case.tokens * case.width
    return elements * (stream + matmul), elements * (2 * stream + 3 * matmul)


SPEC = Spec(
    name="nt_xent_in_image",
    op=nt_xent_in_image,
    reference=nt_xent_in_image_reference,
    inputs=_inputs,
    roles={"z": "matmul", "target": "stream"},
    grads=("z",),
    options={"plain": {"tau": 0.1}, "warm": {"tau": 1.0}},
    trace=_trace,
    traffic=_traffic,
    # One tile of tokens, a part of one, several; the interpreter takes minutes for more.
    cases=(
        Case(batch=1, tokens=70, width=72, heads=1),
        Case(batch=2, tokens=130, width=24, heads=1),
        Case(batch=3, tokens=1, width=96, heads=2),
        Case(batch=2, tokens=17, width=200, heads=1),
    ),
    common=False,
)
