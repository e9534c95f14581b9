"""Real pictures by class, cut out of the two photographs that come with scikit-learn, and image files of every bad kind."""

import io
import struct
import zlib
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image


@cache
def photographs() -> tuple[np.ndarray, ...]:
    """A temple and a flower, (427, 640, 3) uint8."""
    from sklearn.datasets import load_sample_images

    return tuple(load_sample_images().images)


def crop(number: int, width: int, height: int) -> Image.Image:
    """Crop ``number``: even ones are of the temple."""
    picture = photographs()[number % 2]
    rng = np.random.default_rng(number)
    top, left = (int(rng.integers(0, n - side + 1)) for n, side in zip(picture.shape, (height, width), strict=False))
    return Image.fromarray(picture[top : top + height, left : left + width])


def write_classes(folder: Path, each: int, width: int = 48, height: int = 40, classes: tuple[str, ...] = ("flower", "temple"),
                  suffix: str = "jpg") -> Path:  # fmt: skip
    """``each`` crops of each class as files of ``folder``, a folder a class."""
    for c, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            crop(2 * i + 1 - c % 2 + 100 * c, width, height).save(folder / name / f"{i:03d}.{suffix}", quality=95)
    return folder


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few dozen bytes whose header claims ``width`` x ``height`` pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


def unusable(side: int = 64) -> dict[str, tuple[bytes, str]]:
    """File name to (its bytes, what is said of it)."""
    whole = encoded(crop(0, 64, 48), "JPEG", quality=95)
    strip = encoded(Image.new("RGB", (400_000, 2)), "PNG")
    png = encoded(crop(1, 64, 48), "PNG")
    return {
        "truncated.jpg": (whole[: len(whole) // 2], "damaged: image file is truncated"),
        "truncated.png": (png[: len(png) // 2], "damaged: image file is truncated"),
        "text.jpg": (b"not a picture at all\n" * 9, "not an image"),
        "empty.jpg": (b"", "the file is empty (0 bytes)"),
        "bomb.png": (bomb(60_000, 60_000), "more than 178,956,970 pixels: a decompression bomb?"),
        "large.png": (bomb(13_000, 13_000), "13000x13000 pixels: more than --max-pixels 100,000,000"),
        "strip.png": (strip, f"400000x2 pixels: too long and thin to enlarge to {side}"),
        "float.tif": (encoded(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF"), "mode F: 32 bits a pixel without"),
    }
