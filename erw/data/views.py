"""Random views of colour images for contrastive training (SimCLR, Chen et al., arXiv 2002.05709, App. A): crop, flip, colour.

Each image of a batch is distorted in its own way, all in two operations, on any device: a crop with flip is an affine map
of coordinates, and brightness, contrast, saturation, hue and grey are one affine map of colours.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_LUMA = (0.299, 0.587, 0.114)  # Rec. 601


@dataclass(frozen=True, kw_only=True)
class Views:
    """How far the distortions go."""

    least: float = 0.2  # smallest share of the image's area in a crop
    ratio: float = 4 / 3  # largest side ratio of a crop, either way
    brightness: float = 0.4  # relative change, either way
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1  # of a turn, either way
    colour: float = 0.8  # probability of the four above
    grey: float = 0.2  # probability of no colour at all


def view(images: Tensor, how: Views, generator: torch.Generator) -> Tensor:
    """A random view, of the same shape, of each of ``images`` (B, 3, S, S) fp32 in [0, 1].

    Random numbers come from ``generator``, on the CPU, whatever the device: few, and the same everywhere.
    """
    boxes = _boxes(len(images), how, generator).to(images.device)
    grid = F.affine_grid(boxes, list(images.shape), align_corners=False)
    cropped = F.grid_sample(images, grid, padding_mode="border", align_corners=False).flatten(2)
    matrices, lift = (part.to(images.device) for part in _colours(len(images), how, generator))
    luma = cropped.new_tensor(_LUMA).view(1, 1, 3) @ cropped.mean(dim=2, keepdim=True)
    return torch.baddbmm(lift * luma, matrices, cropped).clamp(0, 1).view_as(images)


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


def _boxes(count: int, how: Views, generator: torch.Generator) -> Tensor:
    """(count, 2, 3) maps from a crop's coordinates to the image's, both in [-1, 1]; every other one mirrored."""
    area = _uniform(count, how.least, 1, generator)
    ratio = _uniform(count, -math.log(how.ratio), math.log(how.ratio), generator).exp()
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    right, down = ((1 - size) * _uniform(count, -1, 1, generator) for size in (width, height))
    width = torch.where(torch.rand(count, generator=generator) < 0.5, -width, width)
    zero = torch.zeros(count)
    return torch.stack([torch.stack([width, zero, right], dim=1), torch.stack([zero, height, down], dim=1)], dim=1)


def _colours(count: int, how: Views, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(matrices, lift): colours c become ``matrices`` (count, 3, 3) c + ``lift`` (count, 1, 1) times the image's mean luma."""
    amounts = (how.brightness, how.contrast, how.saturation)
    brightness, contrast, saturation = (_uniform(count, 1 - a, 1 + a, generator) for a in amounts)
    turn = 2 * math.pi * _uniform(count, -how.hue, how.hue, generator)
    plain = torch.rand(count, generator=generator) >= how.colour
    brightness, contrast, saturation = (torch.where(plain, 1.0, part) for part in (brightness, contrast, saturation))
    saturation = torch.where(torch.rand(count, generator=generator) < how.grey, 0.0, saturation).view(-1, 1, 1)
    hue = _turned(torch.where(plain, 0.0, turn).view(-1, 1, 1))
    luma = torch.tensor(_LUMA).expand(3, 3)  # any colour to its grey
    matrices = saturation * hue + (1 - saturation) * luma
    gain, lift = brightness * contrast, brightness * (1 - contrast)
    return gain.view(-1, 1, 1) * matrices, lift.view(-1, 1, 1)


def _turned(angle: Tensor) -> Tensor:
    """Rotations about the axis of greys, the diagonal, by ``angle`` (count, 1, 1) radians (Rodrigues' formula)."""
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    cosine = angle.cos()
    return cosine * torch.eye(3) + angle.sin() * cross + (1 - cosine) / 3
