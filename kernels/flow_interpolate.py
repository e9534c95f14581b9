"""What a flow model is trained on, from a latent and noise, in one pass (SiT, Sec. 2): x_t and the velocity target.

    x = (latent + std * posterior_noise - shift) * scale         std and posterior_noise for a VAE's moments only
    x_t = alpha_t x + sigma_t noise,  velocity = alpha'_t x + sigma'_t noise
    linear: alpha = 1 - t, sigma = t;  cosine (GVP): alpha = cos(pi t / 2), sigma = sin(pi t / 2);  t = 1 is noise

Everything is (B, C, H, W), t (B,). Saved: nothing, there is no gradient. Moves each input and each output once. Samples may
lie apart: mean and std are read where they are, as halves of the stored moments. Arithmetic is fp32, each result rounded
once; sine and cosine are a polynomial on an eighth of the circle (the library's would need a stack), good to 1e-7.

Not for inputs that need a gradient.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from erw.kernels._check import check_floats, check_shape, dense_samples
from erw.kernels._launch import device_of, launch, runs_kernels
from erw.kernels._spec import Case, Inputs, Spec, telling_rows

INTERPOLANTS = ("linear", "cosine")
_BLOCK, _WARPS = 1024, 4
_QUARTER = tl.constexpr(math.pi / 2)


def flow_interpolate_reference(
    latent: Tensor, noise: Tensor, t: Tensor, *, std: Tensor | None = None, posterior_noise: Tensor | None = None,
    scale: float = 1.0, shift: float = 0.0, interpolant: str = "linear",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See `flow_interpolate`; plain PyTorch, on any device and in any float dtype."""
    narrow = _out_dtype(latent, noise, std, posterior_noise)
    wide = torch.promote_types(torch.promote_types(narrow, t.dtype), torch.float32)
    x, noise, t = latent.to(wide), noise.to(wide), t.to(wide).view(-1, 1, 1, 1)
    if std is not None and posterior_noise is not None:
        x = x + std.to(wide) * posterior_noise.to(wide)
    x = (x - shift) * scale
    if interpolant == "linear":
        return ((1 - t) * x + t * noise).to(narrow), (noise - x).to(narrow)
    cosine, sine = torch.cos(t * (math.pi / 2)), torch.sin(t * (math.pi / 2))
    return (cosine * x + sine * noise).to(narrow), (math.pi / 2 * (cosine * noise - sine * x)).to(narrow)


def _out_dtype(latent: Tensor, noise: Tensor, std: Tensor | None, posterior_noise: Tensor | None) -> torch.dtype:
    dtype = torch.promote_types(latent.dtype, noise.dtype)
    for tensor in (std, posterior_noise):
        dtype = dtype if tensor is None else torch.promote_types(dtype, tensor.dtype)
    return dtype


@triton.jit
def _quarter_turns(t):
    """(cos, sin) of t quarter turns, any fp32 t: to the nearest quarter exactly, the rest by polynomials (Cephes)."""
    nearest = tl.floor(t + 0.5)
    x = (t - nearest) * _QUARTER
    square = x * x
    sine = ((-1.9515295891e-4 * square + 8.3321608736e-3) * square - 1.6666654611e-1) * square * x + x
    cosine = (2.443315711809948e-5 * square - 1.388731625493765e-3) * square + 4.166664568298827e-2
    cosine = cosine * square * square - 0.5 * square + 1.0
    quadrant = nearest - 4.0 * tl.floor(nearest * 0.25)
    swapped = (quadrant == 1.0) | (quadrant == 3.0)
    cos = tl.where(swapped, sine, cosine)
    sin = tl.where(swapped, cosine, sine)
    return tl.where((quadrant == 1.0) | (quadrant == 2.0), -cos, cos), tl.where(quadrant >= 2.0, -sin, sin)


@triton.jit
def _forward_kernel(
    latent_ptr, noise_ptr, t_ptr, std_ptr, posterior_ptr, x_t_ptr, velocity_ptr,
    latent_stride, noise_stride, std_stride, posterior_stride, elements, scale, shift,
    MOMENTS: tl.constexpr, COSINE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = place < elements
    t = tl.load(t_ptr + b).to(tl.float32)
    x = tl.load(latent_ptr + b * latent_stride + place, mask=mask, other=0.0).to(tl.float32)
    noise = tl.load(noise_ptr + b * noise_stride + place, mask=mask, other=0.0).to(tl.float32)
    if MOMENTS:
        std = tl.load(std_ptr + b * std_stride + place, mask=mask, other=0.0).to(tl.float32)
        drawn = tl.load(posterior_ptr + b * posterior_stride + place, mask=mask, other=0.0).to(tl.float32)
        x += std * drawn
    x = (x - shift) * scale
    if COSINE:
        alpha, sigma = _quarter_turns(t)
        velocity = (alpha * noise - sigma * x) * _QUARTER
    else:
        alpha, sigma = 1.0 - t, t
        velocity = noise - x
    x_t = alpha * x + sigma * noise
    tl.store(x_t_ptr + b * elements + place, x_t.to(x_t_ptr.dtype.element_ty), mask=mask)
    tl.store(velocity_ptr + b * elements + place, velocity.to(velocity_ptr.dtype.element_ty), mask=mask)


def _forward(
    latent: Tensor, noise: Tensor, t: Tensor, std: Tensor | None, posterior_noise: Tensor | None,
    scale: float, shift: float, interpolant: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(x_t, velocity)."""
    dtype = _out_dtype(latent, noise, std, posterior_noise)
    latent, noise, t = dense_samples(latent), dense_samples(noise), t.contiguous()
    moments = std is not None and posterior_noise is not None
    std, drawn = (dense_samples(std), dense_samples(posterior_noise)) if moments else (latent, latent)
    x_t, velocity = (latent.new_empty(latent.shape, dtype=dtype) for _ in range(2))
    batch, elements = latent.shape[0], latent.shape[1:].numel()
    with device_of(latent):
        launch(
            _forward_kernel, (batch, triton.cdiv(elements, _BLOCK)), latent, noise, t, std, drawn, x_t, velocity,
            latent.stride(0), noise.stride(0), std.stride(0), drawn.stride(0), elements, float(scale), float(shift),
            num_warps=_WARPS, MOMENTS=moments, COSINE=interpolant == "cosine", BLOCK=_BLOCK,
        )  # fmt: skip
    return x_t, velocity


_forward_op = torch.library.custom_op("erw::flow_interpolate", _forward, mutates_args=())


@_forward_op.register_fake
def _(latent, noise, t, std, posterior_noise, scale, shift, interpolant):
    x_t = latent.new_empty(latent.shape, dtype=_out_dtype(latent, noise, std, posterior_noise))
    return x_t, torch.empty_like(x_t)


def flow_interpolate(
    latent: Tensor, noise: Tensor, t: Tensor, *, std: Tensor | None = None, posterior_noise: Tensor | None = None,
    scale: float = 1.0, shift: float = 0.0, interpolant: str = "linear",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(x_t, velocity target), both (B, C, H, W), of clean latents and noise at t.

    latent, noise, std, posterior_noise (B, C, H, W) and t (B,), any of fp32, bf16, fp16, also mixed; samples may be slices of
    larger ones. With ``std`` and ``posterior_noise``, ``latent`` is the mean of a VAE's posterior. The model sees (latent -
    shift) * scale. Results have the dtype that the inputs (without t) promote to. On a CPU (without Triton's interpreter)
    the plain PyTorch form computes it. Raises ValueError for arguments that do not fit or require a gradient.
    """
    check_shape("latent", latent, (None,) * 4, "B C H W")
    check_shape("t", t, (latent.shape[0],), "B")
    given = {"latent": latent, "noise": noise, "t": t, "std": std, "posterior_noise": posterior_noise}
    given = {name: tensor for name, tensor in given.items() if tensor is not None}
    if ("std" in given) != ("posterior_noise" in given):
        lone, other = ("std", "posterior_noise") if "std" in given else ("posterior_noise", "std")
        raise ValueError(f"{other} is None, should be (B, C, H, W) as {lone} is given")
    for name, tensor in given.items():
        if name != "t":
            check_shape(name, tensor, tuple(latent.shape), "B C H W")
        if tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name} requires a gradient, should not: flow_interpolate has none")
    if interpolant not in INTERPOLANTS:
        raise ValueError(f"interpolant is {interpolant!r}, should be one of {', '.join(INTERPOLANTS)}")
    if not runs_kernels(latent):
        return flow_interpolate_reference(
            latent, noise, t, std=std, posterior_noise=posterior_noise, scale=scale, shift=shift, interpolant=interpolant
        )
    check_floats(**given)
    return _forward_op(latent, noise, t, std, posterior_noise, scale, shift, interpolant)


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    shape = case.latent(channels=4)
    drawn = {name: telling_rows(shape, generator) for name in ("latent", "noise", "std", "posterior_noise")}
    return drawn | {"t": 3 * torch.rand(case.batch, generator=generator, dtype=torch.float64) - 1}


def _trace(latent: Tensor, noise: Tensor, t: Tensor, std: Tensor, posterior_noise: Tensor) -> None:
    for interpolant in INTERPOLANTS:
        for drawn in ((None, None), (std, posterior_noise)):
            _forward(latent, noise, t, *drawn, 0.18215, 0.0, interpolant)


def _traffic(case: Case, stream: int, matmul: int) -> tuple[int, int]:
    return 6 * torch.Size(case.latent(channels=4)).numel() * stream, 0


_LATENT = {"std": None, "posterior_noise": None}
SPEC = Spec(
    name="flow_interpolate",
    op=flow_interpolate,
    reference=flow_interpolate_reference,
    inputs=_inputs,
    roles={"latent": "stream", "noise": "stream", "t": "float32", "std": "matmul", "posterior_noise": "stream"},
    grads=(),
    options={
        "moments": {"scale": 0.18215, "shift": 0.1},
        "moments-cosine": {"scale": 0.5, "interpolant": "cosine"},
        "latent": _LATENT,
        "latent-cosine": _LATENT | {"scale": 2.0, "interpolant": "cosine"},
    },
    trace=_trace,
    traffic=_traffic,
    cases=(Case(batch=2, tokens=100),),  # a block and a half
)
