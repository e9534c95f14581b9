"""From bytes to crops: what is converted and how, what is left out and why, and ADM's crop."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from erw.prepare.crop import centre_crop
from erw.prepare.decode import MAX_PIXELS, Unusable, decode
from photographs import crop, encoded, unusable

RED, SIZE = (200, 30, 40), (20, 16)


def close_to(image: Image.Image, colour: tuple[int, int, int], tolerance: int = 4) -> bool:
    return image.mode == "RGB" and np.abs(np.asarray(image).astype(int) - colour).max() <= tolerance


def test_plain_images_come_as_they_are():
    picture = crop(0, 40, 30)
    image, converted = decode(encoded(picture, "PNG"))
    assert converted is None and np.array_equal(np.asarray(image), np.asarray(picture))


def test_modes_are_converted_and_said():
    flat = Image.new("RGB", SIZE, RED)
    grey = Image.new("L", SIZE, 77)
    cases = {
        "CMYK": (encoded(flat.convert("CMYK"), "JPEG", quality=100), RED),
        "P": (encoded(flat.convert("P", palette=Image.Palette.ADAPTIVE), "PNG"), RED),
        "L": (encoded(grey, "PNG"), (77, 77, 77)),
        "1": (encoded(Image.new("1", SIZE, 1), "PNG"), (255, 255, 255)),
    }
    for mode, (data, colour) in cases.items():
        image, converted = decode(data)
        assert converted == mode and close_to(image, colour), mode


def test_sixteen_bits_are_scaled_not_clipped():
    """Pillow's own conversion clips at 255, which would make nearly every pixel white."""
    levels = np.linspace(0, 65535, 320).astype(np.uint16).reshape(16, 20)
    for kind in ("PNG", "TIFF"):
        image, converted = decode(encoded(Image.fromarray(levels), kind))
        assert converted == "16-bit grey" and image.mode == "RGB"
        assert np.abs(np.asarray(image)[..., 0].astype(float) - levels / 257).max() <= 0.5


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", SIZE, colour) for colour in (RED, (0, 255, 0), (0, 0, 255))]
    for kind in ("GIF", "WEBP", "PNG"):
        image, converted = decode(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **_exact(kind)))
        assert converted == "animated, first frame" and close_to(image, RED), kind


def _exact(kind: str) -> dict:
    return {"lossless": True} if kind == "WEBP" else {}


def test_what_is_transparent_lies_on_white():
    clear = Image.new("RGBA", SIZE, (*RED, 0))
    assert close_to(decode(encoded(clear, "PNG"))[0], (255, 255, 255))
    half = Image.new("RGBA", SIZE, (0, 0, 0, 128))
    image, converted = decode(encoded(half, "PNG"))
    assert converted == "RGBA with transparency" and close_to(image, (127, 127, 127))
    palette = Image.new("P", SIZE, 0)
    palette.putpalette([*RED, 0, 0, 0])
    assert close_to(decode(encoded(palette, "PNG", transparency=0))[0], (255, 255, 255))


def test_exif_turns_only_when_asked():
    picture = crop(3, 30, 20)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    data = encoded(picture, "PNG", exif=exif)
    assert decode(data)[0].size == (30, 20)
    assert decode(data, orient=True)[0].size == (20, 30)


@pytest.mark.parametrize("name", unusable())
def test_what_cannot_be_used_says_why(name):
    data, reason = unusable()[name]
    with pytest.raises(Unusable) as error:
        centre_crop(decode(data)[0], 64, MAX_PIXELS)
    assert str(error.value).startswith(reason)


@pytest.mark.filterwarnings("error")
def test_a_limit_of_ones_own_and_no_warning_on_the_way():
    data = encoded(crop(0, 64, 48), "PNG")
    with pytest.raises(Unusable, match="64x48 pixels: more than --max-pixels 3,071"):
        decode(data, max_pixels=3071)
    assert decode(data, max_pixels=3072)[0].size == (64, 48)
    with pytest.raises(Unusable, match="damaged"):
        decode(unusable()["large.png"][0], max_pixels=10**9)  # beyond where Pillow warns


# ---- ADM's crop: checksums of what the published function gives for the same pixels -------------------------------------


def pattern(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[:height, :width].astype(np.int64)
    return Image.fromarray(np.stack([x * y % 251, (x * x + 3 * y) % 256, (x + y * y // 7) % 253], -1).astype(np.uint8))


@pytest.mark.parametrize(
    ("width", "height", "side", "digest"),
    [
        (500, 375, 256, "00e5f24af0abbc5d"),
        (375, 500, 256, "4681caf8dbbd7a92"),
        (1213, 1031, 256, "1abfe4902d4624a6"),
        (1700, 1203, 512, "d7a53a52f6b9e331"),
        (31, 47, 64, "448c00a14ee4f480"),
        (32, 32, 32, "5741a69c4df77163"),
    ],
)
def test_the_crop_is_adms_byte_for_byte(width, height, side, digest):
    found = np.asarray(centre_crop(pattern(width, height), side, MAX_PIXELS))
    assert found.shape == (side, side, 3)
    assert hashlib.sha256(found.tobytes()).hexdigest()[:16] == digest
