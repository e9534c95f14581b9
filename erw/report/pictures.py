"""Sample grids that ``erw sample`` left in a run's folder, as data URIs."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from erw.errors import UserError

MOST = 8
_SIDE, _BYTES = 1000, 400_000  # beyond either a picture is made smaller


@dataclass(frozen=True)
class Picture:
    """``uri`` holds the picture itself; ``images`` is how many the run had trained, None where the folder does not say."""

    label: str
    images: int | None
    uri: str
    width: int
    height: int


def pictures(run: Path) -> tuple[list[Picture], int]:
    """(at most ``MOST`` pictures spread over the run, how many there are), in order of training images.

    Raises `UserError` for a file that is no picture.
    """
    files = sorted(run.glob("samples-*/samples.png"), key=lambda file: (not _number(file).isdigit(), _number(file)))
    kept = files
    if len(files) > MOST:
        kept = [files[round(i * (len(files) - 1) / (MOST - 1))] for i in range(MOST)]
    return [_picture(file) for file in kept], len(files)


def _number(file: Path) -> str:
    return file.parent.name.removeprefix("samples-")


def _picture(file: Path) -> Picture:
    try:
        data = file.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            kind, width, height = (image.format or "").lower(), image.width, image.height
            if max(width, height) > _SIDE or len(data) > _BYTES or kind != "png":
                small = image.convert("L" if image.mode == "L" else "RGB")
                small.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
                stream = io.BytesIO()
                small.save(stream, "JPEG", quality=88)
                data, kind, width, height = stream.getvalue(), "jpeg", small.width, small.height
            else:
                image.load()  # a cut file shows itself only here
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{file} is no picture ({error}): remove it, or sample again") from None
    name = _number(file)
    images = int(name) if name.isdigit() else None
    label = f"{images:,} images" if images is not None else name
    return Picture(label, images, f"data:image/{kind};base64,{base64.b64encode(data).decode()}", width, height)
