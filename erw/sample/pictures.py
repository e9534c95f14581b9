"""From tensors to pixels and pictures."""

import math

import numpy as np
from PIL import Image
from torch import Tensor, uint8


def to_uint8(images: Tensor) -> np.ndarray:
    """(N, C, H, W), clamped to [-1, 1], to (N, H, W, C) uint8."""
    return (images.clamp(-1, 1) * 127.5 + 127.5).round().to(uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def picture(pixels: np.ndarray) -> Image.Image:
    """Of (H, W, C) uint8, C 1 or 3."""
    return Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)


def grid(pixels: np.ndarray, columns: int, gap: int = 1, zoom: int = 1) -> Image.Image:
    """One picture from (N, H, W, C) uint8, row by row."""
    count, height, width, channels = pixels.shape
    rows = math.ceil(count / columns)
    sheet = np.zeros((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), np.uint8)
    for i, one in enumerate(pixels):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = one
    image = picture(sheet)
    return image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)
