"""Training FLOPs, said once and used everywhere. 1 multiply-add = 2 FLOP.

A step costs 3x the forward (forward, data gradient, weight gradient) of every module that has gradients: in a warm-up
only the blocks that run, in every aligned phase the projector too. A teacher that runs online adds its forward; cached
features add their share: one forward an image of the dataset, spread over the run's epochs. Recompute and the optimizer
are not counted (they show in seconds), nor is the teacher's own training (stated apart).
"""

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from erw.align.base import Method
from erw.models.embed import TimestepEmbedder
from erw.models.sit import SiTConfig
from erw.types import Phase, TeacherSpec


def block_flops(model: SiTConfig) -> int:
    """Forward of one block for one image: qkv and output projection, two attention matmuls, MLP, modulation."""
    tokens, width = model.tokens, model.width
    linears = 4 * width * width + 2 * width * int(width * model.mlp_ratio)
    return 2 * (tokens * linears + 2 * tokens * tokens * width + 6 * width * width)


def embed_flops(model: SiTConfig) -> int:
    """Forward of the patch and time embeddings for one image."""
    patch = model.patch_size**2 * model.in_channels
    return 2 * (model.tokens * patch * model.width + TimestepEmbedder.FREQUENCIES * model.width + model.width**2)


def final_flops(model: SiTConfig) -> int:
    """Forward of the final layer for one image."""
    patch = model.patch_size**2 * model.out_channels
    return 2 * (model.tokens * patch * model.width + 2 * model.width**2)


def forward_flops(model: SiTConfig) -> int:
    """Forward of the whole backbone for one image."""
    return embed_flops(model) + model.depth * block_flops(model) + final_flops(model)


def train_flops(model: SiTConfig, method: Method, phase: Phase, teachers: tuple[TeacherSpec, ...]) -> int:
    """One training image in ``phase``, without the teachers."""
    if phase.depth is None:
        forward = forward_flops(model)
    else:
        forward = embed_flops(model) + phase.blocks * block_flops(model)
    return 3 * (forward + (method.head_flops(model, teachers) if phase.aligns else 0))


def cached_share(forward: int, cached_images: int, planned_images: int) -> float:
    """Teacher FLOPs charged to each aligned training image: a cache of ``cached_images`` images, ``forward`` each, is paid
    once, spread over the ``planned_images`` that will use it."""
    return forward * min(1.0, cached_images / max(planned_images, 1))


def online_share(forward: int, group: int, micro: int) -> float:
    """The same of a teacher that runs in every step, on the whole groups of ``group`` images that a micro-batch of ``micro``
    lies in: on images more than once where groups are larger."""
    return forward * max(1.0, group / micro)


def measured_forward(module: nn.Module, *inputs: Tensor) -> int:
    """Forward FLOPs of ``module(*inputs)`` as torch's own counter sees them (for teachers, which may be anything)."""
    counter = FlopCounterMode(display=False)
    with counter:
        module(*inputs)
    return counter.get_total_flops()
