"""From a file's bytes to pixels, or to the reason why not.

Converted: CMYK, palettes, grey and 16-bit grey to 8-bit RGB; the first frame of an animation; what is transparent lies
on white. Left out: whatever cannot be decoded whole, and images beyond ``max_pixels``, which a few bytes can claim to be.
"""

import io
import warnings

import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 100_000_000
PILLOWS_LIMIT = 178_956_970  # what Pillow itself refuses


class Unusable(Exception):
    """An image that cannot be used. The message is the reason that the manifest gives."""


def decode(data: bytes, max_pixels: int = MAX_PIXELS, orient: bool = False) -> tuple[Image.Image, str | None]:
    """(8-bit RGB image, what was converted or None). ``orient``: turned as its EXIF data say. Raises `Unusable`."""
    if not data:
        raise Unusable("the file is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes, which are judged here, and of odd metadata
            return _decode(data, max_pixels, orient)
    except Unusable:
        raise
    except Image.UnidentifiedImageError:
        raise Unusable("not an image") from None
    except Image.DecompressionBombError:
        raise Unusable(f"more than {PILLOWS_LIMIT:,} pixels: a decompression bomb?") from None
    except MemoryError:
        raise
    except Exception as error:  # decoders raise whatever broken bytes lead them to
        raise Unusable(f"damaged: {str(error).strip() or type(error).__name__}") from None


def _decode(data: bytes, max_pixels: int, orient: bool) -> tuple[Image.Image, str | None]:
    image = Image.open(io.BytesIO(data))
    if image.width * image.height > max_pixels:  # the header's word, before anything is decoded
        raise Unusable(f"{image.width}x{image.height} pixels: more than --max-pixels {max_pixels:,}")
    animated = getattr(image, "n_frames", 1) > 1
    image.load()
    if orient:
        image = ImageOps.exif_transpose(image)
    converted, image = _rgb(image)
    return image, "animated, first frame" if animated else converted


def _rgb(image: Image.Image) -> tuple[str | None, Image.Image]:
    if image.mode == "RGB" and "transparency" not in image.info:
        return None, image
    if image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PNG"):  # the latter: older Pillows
        levels = np.asarray(image).astype(np.uint32)
        return "16-bit grey", Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise Unusable(f"mode {image.mode}: 32 bits a pixel without a known range")
    if image.has_transparency_data:
        over = image.convert("RGBA")
        paper = Image.new("RGBA", over.size, "white")
        return f"{image.mode} with transparency", Image.alpha_composite(paper, over).convert("RGB")
    return image.mode, image.convert("RGB")
