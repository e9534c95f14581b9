"""NT-Xent of tokens against a teacher's, with the other images of a group as negatives (ERW, Sec. 3).

    l_ij = cos(z_i, u_j) / tau                        token n of image i against token n of the images j of its group
    out_b = mean_n (logsumexp_j l_bj - l_bb)          z (B, N, D), target u (W, N, D); norms are at least 1e-12
    e_ij = softmax_j(l_ij) - [j = i],  s_i = sum_j e_ij l_ij
    dz_i = (dout_i / (N |z_i|)) (sum_j e_ij u_j / (|u_j| tau) - s_i z_i / |z_i|)          no gradient for the target

Saved: z, target (someone else's tensors as a rule) and fp32 statistics, three for a token of z, one for one of target.
Logits are never in memory: tiles of them live in registers and are computed again for the backward (see _contrast.py).
Moves |z| + |target| forward, 3|z| + 2|target| backward; where a group has more than 64 images, columns are read again for
each tile of rows, and rows for each tile of columns, mostly from L2. Arithmetic is fp32, dz is rounded once.

Not where the target needs a gradient. In fp32 there are no tensor cores: give both in bf16 where that will do.
"""

import torch
import torch.nn.functional as F
import triton
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from erw.kernels._check import check_floats, check_shape
from erw.kernels._contrast import EPS, contrast_backward, contrast_forward, fake_forward, trace
from erw.kernels._launch import runs_kernels
from erw.kernels._spec import Case, Inputs, Spec, telling_rows


def contrast_reference(z: Tensor, target: Tensor, positive: Tensor, tau: float) -> Tensor:
    """Cross-entropy of each row of z (K, b, D) against its ``positive`` (b,) among the rows of target (K, G, D): (K, b).

    Logits are computed again for the backward.
    """
    return checkpoint(_contrast, z, target.detach(), positive, tau, use_reentrant=False, preserve_rng_state=False)


def _contrast(z: Tensor, target: Tensor, positive: Tensor, tau: float) -> Tensor:
    wide = torch.promote_types(torch.promote_types(z.dtype, target.dtype), torch.float32)
    z, u = F.normalize(z.to(wide), dim=-1, eps=EPS), F.normalize(target.to(wide), dim=-1, eps=EPS)
    with torch.autocast(z.device.type, enabled=False):  # which would round the logits
        logits = z @ u.transpose(1, 2) / tau
    return torch.logsumexp(logits, dim=-1) - logits.gather(-1, positive.view(1, -1, 1).expand(len(z), -1, 1)).squeeze(-1)


def nt_xent_alignment_reference(z: Tensor, target: Tensor, *, first: int, group: int, tau: float) -> Tensor:
    """See `nt_xent_alignment`; plain PyTorch, on any device and in any float dtype, a group at a time."""
    losses = [z[:0].to(torch.promote_types(z.dtype, torch.float32)).sum(dim=(1, 2))]
    start = 0
    while start < len(z):
        low = (first + start) // group * group
        stop = min(len(z), low + group - first)
        positive = torch.arange(first + start - low, first + stop - low, device=z.device)
        tokens = z[start:stop].transpose(0, 1), target[low : low + group].transpose(0, 1)
        losses.append(contrast_reference(*tokens, positive, tau).mean(dim=0))
        start = stop
    return torch.cat(losses)


def _forward(z: Tensor, target: Tensor, first: int, group: int, tau: float) -> tuple[Tensor, Tensor, Tensor]:
    return contrast_forward(z, target, first, group, tau, in_image=False)


def _backward(
    z: Tensor, target: Tensor, dout: Tensor, rows: Tensor, target_norm: Tensor, first: int, group: int, tau: float
) -> Tensor:
    return contrast_backward(z, target, dout, rows, target_norm, first, group, tau, in_image=False)


_forward_op = torch.library.custom_op("erw::nt_xent_alignment", _forward, mutates_args=())
_backward_op = torch.library.custom_op("erw::nt_xent_alignment_backward", _backward, mutates_args=())


@_forward_op.register_fake
def _(z, target, first, group, tau):
    return fake_forward(z, target)


@_backward_op.register_fake
def _(z, target, dout, rows, target_norm, first, group, tau):
    return z.new_empty(z.shape)


def _save(ctx, inputs, output):
    z, target, *ctx.numbers = inputs
    ctx.save_for_backward(z, target, *output[1:])
    ctx.set_materialize_grads(False)  # the statistics get none


def _differentiate(ctx, dout, *_):
    z, target, *statistics = ctx.saved_tensors
    return _backward_op(z, target, dout, *statistics, *ctx.numbers), None, None, None, None


_forward_op.register_autograd(_differentiate, setup_context=_save)


def nt_xent_alignment(z: Tensor, target: Tensor, *, first: int, group: int, tau: float) -> Tensor:
    """Cross-entropy, at temperature ``tau``, of telling each token's own image among the images of its group; averaged over
    a sample's tokens.

    z (B, N, D); target (W, N, D), whole groups of ``group`` images, z's first image being row ``first``; any of fp32, bf16,
    fp16, also mixed; the target gets no gradient. Returns (B,) fp32. On a CPU (without Triton's interpreter) the plain
    PyTorch form computes it. Raises ValueError for arguments that do not fit.
    """
    check_shape("z", z, (None, None, None), "B N D")
    check_shape("target", target, (None, *z.shape[1:]), "W N D")
    check_tau(tau)
    if group < 1 or len(target) % group:
        raise ValueError(f"group is {group}, should be at least 1 and divide the {len(target)} rows of target")
    if first < 0 or first + len(z) > len(target):
        raise ValueError(f"first is {first}, should be 0 to {len(target) - len(z)}: z has {len(z)} rows, target {len(target)}")
    if not runs_kernels(z):
        return nt_xent_alignment_reference(z, target, first=first, group=group, tau=tau)
    check_floats(z=z, target=target)
    return _forward_op(z, target, first, group, tau)[0]


def check_tau(tau: float) -> None:
    """Raise ValueError for what is no temperature."""
    if not tau > 0:
        raise ValueError(f"tau is {tau}, should be above 0")


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    shape = (case.batch, case.tokens, case.width)
    images = 192 * triton.cdiv(case.batch + 64, 192)  # whole groups of 3, 64 and 96
    return {"z": telling_rows(shape, generator), "target": telling_rows((images, *shape[1:]), generator)}


def _trace(z: Tensor, target: Tensor) -> None:
    trace(z, in_image=False)


def _traffic(case: Case, stream: int, matmul: int) -> tuple[int, int]:
    elements = case.batch * case.tokens * case.width
    return elements * (stream + matmul), elements * (2 * stream + 3 * matmul)


SPEC = Spec(
    name="nt_xent_alignment",
    op=nt_xent_alignment,
    reference=nt_xent_alignment_reference,
    inputs=_inputs,
    roles={"z": "matmul", "target": "stream"},
    grads=("z",),
    # Groups of one tile and of two (as far as columns go), and rows that begin and end in the middle of one.
    options={
        "usual": {"first": 64, "group": 64, "tau": 0.1},
        "small": {"first": 5, "group": 3, "tau": 0.1},
        "tiles": {"first": 63, "group": 96, "tau": 0.5},
    },
    trace=_trace,
    traffic=_traffic,
    # Each token is a problem of its own: a few tell as much as many, and sooner.
    cases=(
        Case(batch=2, tokens=2, width=72, heads=1),
        Case(batch=2, tokens=5, width=200, heads=1),
        Case(batch=3, tokens=1, width=96, heads=2),
        Case(batch=40, tokens=2, width=40, heads=1),
    ),
    common=False,
)
