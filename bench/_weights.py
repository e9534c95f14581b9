"""Weights to begin with, the same in every row of a ladder."""

import zlib

import torch
from torch import nn

from erw.step import public_name


@torch.no_grad()
def draw_weights(module: nn.Module) -> None:
    """Every trainable parameter from a stream named by its public name, in place: N(0, 0.02^2), whoever's module it is.

    A fresh model's zeros would make whole matmuls multiply zeros, which draws less power and clocks a GPU higher.
    """
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            seed = zlib.crc32(public_name(name).encode())
            parameter.normal_(0.0, 0.02, generator=torch.Generator(parameter.device).manual_seed(seed))
