"""ADM's crop (Dhariwal and Nichol, arXiv 2105.05233; the one behind every published ImageNet figure of this field)."""

from PIL import Image

from erw.prepare.decode import Unusable


def centre_crop(image: Image.Image, side: int, max_pixels: int) -> Image.Image:
    """The middle of ``image`` (RGB), ``side`` x ``side``, after its shorter side was resized to ``side``.

    Halved with a box filter while both sides stay at least ``side``, then resized bicubically: cheaper than one wide
    bicubic filter, and what published latents were made with. Raises `Unusable` where the resized image would exceed
    ``max_pixels``, as a strip of a few pixels' height does.
    """
    width, height = image.size
    if side * side * max(width, height) // min(width, height) > max_pixels:
        raise Unusable(f"{width}x{height} pixels: too long and thin to enlarge to {side}")
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = side / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))
