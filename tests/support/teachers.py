"""Small networks of the teachers' families, and pictures for them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from erw.teachers import timm as teachers
from erw.teachers.names import TimmModel
from erw.teachers.timm import described

CPU = torch.device("cpu")
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5,) * 3, (0.5,) * 3)


def photographs(side: int = 256) -> torch.Tensor:
    """Two crops of the photographs that come with scikit-learn, (2, 3, side, side) uint8."""
    from sklearn.datasets import load_sample_image

    crops = [load_sample_image(name)[100 : 100 + side, 200 : 200 + side].copy() for name in ("china.jpg", "flower.jpg")]
    return torch.stack([torch.from_numpy(crop).permute(2, 0, 1) for crop in crops])


def small(known: TimmModel) -> TimmModel:
    """The same network two blocks deep, and narrow."""
    width = min(known.width, 192)
    return replace(known, width=width, options={"depth": 2, "embed_dim": width, "num_heads": 3})


@contextmanager
def small_networks() -> Iterator[None]:
    """Every teacher of timm is a `small` one meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("erw.teachers.timm.described", lambda name: small(described(name)))
        yield
    teachers._count.cache_clear()
