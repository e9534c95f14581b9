"""Images to evaluate, read in parts: an .npz as ``erw sample`` and ADM write it, or a folder of image files."""

import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from erw.data import digits
from erw.data.store import StoreDataset, is_store
from erw.errors import UserError

SUFFIXES = {".png", ".webp", ".jpg", ".jpeg", ".bmp"}
BUILT_IN = {"digits": "train", "digits-held-out": "held_out"}
_GRID = "samples.png"  # the overview that erw sample writes beside its samples


@dataclass(frozen=True)
class Images:
    """``count`` images of ``shape`` (H, W, C), C 1 or 3, uint8. ``labels`` (N,) int64 where they are known.

    ``parts(n)`` reads them anew: arrays (up to n, H, W, C) uint8. It raises `UserError` for a file that is broken further on.
    """

    name: str
    count: int
    shape: tuple[int, int, int]
    parts: Callable[[int], Iterator[np.ndarray]]
    labels: Tensor | None = None


def open_images(path: Path | str) -> Images:
    """The images in ``path``: an .npz, a folder of image files, what ``erw sample`` or ``erw prepare`` wrote, a dataset's
    folder with its images.npy, or the name of a built-in set (`BUILT_IN`). Raises `UserError` for what is none of these.
    """
    if str(path) in BUILT_IN and not Path(path).exists():
        return _digits(str(path))
    path = Path(path)
    if not path.exists():
        raise UserError(f"'{path}' does not exist: name an .npz, a folder of images, a run, or {', '.join(BUILT_IN)}")
    if (path / "samples.npz").is_file():
        path = path / "samples.npz"
    if is_store(str(path)):
        return _store(path)
    if (path / "images.npy").is_file():
        return _dataset(path / "images.npy")
    return _folder(path) if path.is_dir() else _npz(path)


def open_npz(path: Path) -> np.lib.npyio.NpzFile:
    """``path`` as numpy's archive. Raises `UserError` where it is none."""
    try:
        archive = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not a whole .npz file ({error}): write or download it again") from None
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise UserError(f"{path} is a single array, not an .npz file: save it with numpy.savez({path.stem}.npz, images)")
    return archive


def read_array(archive: np.lib.npyio.NpzFile, name: str, path: Path) -> np.ndarray:
    """One whole array of ``archive``. Raises `UserError` where it is damaged."""
    try:
        return archive[name]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: {name} cannot be read ({error}): write or download the file again") from None


def _digits(name: str) -> Images:
    images, labels = digits.load(BUILT_IN[name])
    # The data set's 17 levels, 0 to 16, as bytes: what `erw.sample.to_uint8` makes of them.
    pixels = (images * 127.5 + 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return Images(name, len(pixels), pixels.shape[1:], lambda size: _slices(pixels, size), labels)


def _slices(pixels: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (pixels[start : start + size] for start in range(0, len(pixels), size))


def _npz(path: Path) -> Images:
    archive = open_npz(path)
    if "arr_0" not in archive:
        raise UserError(f"{path} holds {', '.join(archive.files) or 'nothing'}, not arr_0, the images (N, H, W, C) as uint8")
    shape, dtype = _header(path)
    if dtype != np.uint8:
        raise UserError(f"{path}: arr_0 is {dtype}, not uint8: save pixels of 0 to 255 as uint8")
    if len(shape) != 4 or shape[-1] not in (1, 3):
        raise UserError(f"{path}: arr_0 has shape {shape}, not (N, H, W, 3) or (N, H, W, 1): move the channels to the end")
    if not all(shape):
        raise UserError(f"{path}: arr_0 has shape {shape}: there is no image in it")
    labels = next((read_array(archive, name, path) for name in ("labels", "arr_1") if name in archive), None)
    if labels is not None and labels.shape != shape[:1]:
        raise UserError(f"{path}: labels have shape {labels.shape} for {shape[0]} images")
    labels = None if labels is None else torch.from_numpy(labels.astype(np.int64))
    return Images(str(path), shape[0], shape[1:], lambda size: _streamed(path, shape, size), labels)


def _header(path: Path) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of arr_0, without reading it."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as file:
            shape, fortran, dtype = _array_header(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: arr_0 cannot be read ({error}): write or download the file again") from None
    if fortran and len(shape) > 1:
        raise UserError(f"{path}: arr_0 is in Fortran order: save numpy.ascontiguousarray(images)")
    return shape, dtype


def _array_header(file) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)


def _streamed(path: Path, shape: tuple[int, ...], size: int) -> Iterator[np.ndarray]:
    """arr_0 in parts: fifty thousand images of 256 pixels are 10 GB, which need not be in memory at once."""
    each = int(np.prod(shape[1:]))
    try:
        with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as file:
            _array_header(file)
            for start in range(0, shape[0], size):
                count = min(size, shape[0] - start)
                data = file.read(count * each)
                if len(data) < count * each:
                    raise EOFError(f"it ends in image {start + len(data) // each}")
                yield np.frombuffer(data, np.uint8).reshape(count, *shape[1:])
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: arr_0 is damaged ({error}): write or download the file again") from None


def _dataset(file: Path) -> Images:
    """images.npy of `erw.data.arrays`: (N, 3, H, W) uint8."""
    try:
        array = np.load(file, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}): write it again") from None
    if array.ndim != 4 or array.shape[1] not in (1, 3) or array.dtype != np.uint8 or not len(array):
        raise UserError(f"{file} is {array.dtype} of shape {array.shape}, not uint8 (N, 3, H, W)")
    pixels = array.transpose(0, 2, 3, 1)
    return Images(
        str(file.parent), len(pixels), pixels.shape[1:], lambda size: map(np.ascontiguousarray, _slices(pixels, size))
    )


def _store(path: Path) -> Images:
    """The pixels of a prepared dataset."""
    dataset = StoreDataset(str(path))
    if not dataset.has_images:
        raise UserError(f"{path} holds latents and no pixels: prepare it with --images to compare with it")
    rows = np.arange(len(dataset))

    def parts(size: int) -> Iterator[np.ndarray]:
        for part in _slices(rows, size):
            yield dataset.images(part).permute(0, 2, 3, 1).contiguous().numpy()

    return Images(str(path), len(rows), next(parts(1)).shape[1:], parts, dataset.read("labels", rows).long())


def _folder(path: Path) -> Images:
    files = sorted(f for f in path.rglob("*") if f.suffix.lower() in SUFFIXES and f.name != _GRID)
    if not files:
        raise UserError(f"{path} holds no image ({', '.join(sorted(SUFFIXES))}) and no samples.npz: name the folder that does")
    shape = _pixels(files[0]).shape
    # erw sample writes images/000000.png and so on, and labels.npy beside images.
    labels = (path.parent if path.name == "images" else path) / "labels.npy"

    def parts(size: int) -> Iterator[np.ndarray]:
        for start in range(0, len(files), size):
            yield np.stack([_alike(file, shape) for file in files[start : start + size]])

    return Images(str(path), len(files), shape, parts, _labels(labels, len(files)) if labels.is_file() else None)


def _labels(file: Path, count: int) -> Tensor:
    try:
        labels = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{file} cannot be read ({error}): write it again, or remove it") from None
    if labels.shape != (count,):
        raise UserError(f"{file} has shape {labels.shape} for {count} images beside it")
    return torch.from_numpy(labels.astype(np.int64))


def _alike(file: Path, shape: tuple[int, ...]) -> np.ndarray:
    pixels = _pixels(file)
    if pixels.shape != shape:
        raise UserError(
            f"{file} is {pixels.shape[1]}x{pixels.shape[0]} with {pixels.shape[2]} channels, others beside it are"
            f" {shape[1]}x{shape[0]} with {shape[2]}: crop and resize them alike first"
        )
    return pixels


def _pixels(file: Path) -> np.ndarray:
    """(H, W, C) uint8: one channel of a grey image, else red, green and blue."""
    try:
        with Image.open(file) as image:
            pixels = np.asarray(image if image.mode == "L" else image.convert("RGB"))
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise UserError(f"{file} is not a whole image ({error}): write it again, or remove it") from None
    return pixels if pixels.ndim == 3 else pixels[..., None]
