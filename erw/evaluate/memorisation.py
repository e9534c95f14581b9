"""How many generated images are near-copies of training images.

The figure is the share of samples nearer to a training image than held-out images are. Nearness is the Euclidean distance
of pixels to the nearest training image. The threshold is the 5th percentile of the same distance over the held-out images.
A generator of new images gives about 0.05, one that copies its training images gives 1.

Limits. It says nothing of quality: noise gives 0. Smooth or blurred samples lie nearer to everything, so a figure above 0.05
is no proof of copying by itself. A copy that was moved by a pixel is far away in pixels and is not noticed. Where held-out
images are few, the threshold is rough: of 360 of them, 18 lie below it.
"""

import torch
from torch import Tensor

from erw.errors import UserError

PERCENTILE = 0.05


def nearest_distances(images: Tensor, training: Tensor, *, chunk: int = 512) -> Tensor:
    """Euclidean distance of each of ``images`` (N, ...) to the nearest of ``training`` (M, ...): (N,) fp64 on the CPU.

    Both of one shape beside N and M, any real dtype and device; ``chunk`` images are compared at a time, which changes no bit.
    Raises `UserError` for NaN or infinity, ValueError for shapes that differ and for an empty side.
    """
    if images.shape[1:] != training.shape[1:] or not len(images) or not len(training):
        raise ValueError(f"images {tuple(images.shape)} cannot be compared with training images {tuple(training.shape)}")
    # fp64 on the CPU, differences not products: the figure depends on no device, and a copy is at distance 0 exactly.
    samples, references = (x.detach().to("cpu", torch.float64).flatten(1) for x in (images, training))
    for name, rows in (("images", samples), ("training images", references)):
        broken = int((~rows.isfinite().all(dim=1)).sum())
        if broken:
            raise UserError(f"{broken} of {len(rows)} {name} hold NaN or infinity: check them")
    exact = "donot_use_mm_for_euclid_dist"
    parts = [torch.cdist(part, references, compute_mode=exact).amin(dim=1) for part in samples.split(chunk)]
    return torch.cat(parts)


def copy_threshold(held_out: Tensor, training: Tensor, *, chunk: int = 512) -> float:
    """The 5th percentile (linear between order statistics) of the distances of ``held_out`` (H, ...) to ``training`` (M, ...).

    Raises as `nearest_distances` does, and `UserError` where the percentile is 0: then held-out images are training images.
    """
    threshold = float(nearest_distances(held_out, training, chunk=chunk).quantile(PERCENTILE))
    if threshold == 0:
        raise UserError("a twentieth of the held-out images are training images: hold out others")
    return threshold


def memorised_share(samples: Tensor, training: Tensor, threshold: float, *, chunk: int = 512) -> float:
    """The share, 0 to 1, of ``samples`` (N, ...) whose distance to ``training`` (M, ...) is below ``threshold``.

    ``threshold`` comes from `copy_threshold` of the same training images. Raises as `nearest_distances` does.
    """
    return float((nearest_distances(samples, training, chunk=chunk) < threshold).double().mean())
