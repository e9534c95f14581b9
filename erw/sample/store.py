"""Where finished blocks lie, and how they become the result."""

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from PIL import Image

from erw.files import kept
from erw.sample.blocks import Block
from erw.sample.files import write_npz
from erw.sample.pictures import picture

Format = Literal["npz", "png", "webp"]
_SAVE = {"png": {}, "webp": {"lossless": True, "method": 4}}
_ENCODERS = 4  # threads; zlib and libwebp work outside Python's lock


class Store(Protocol):
    """Blocks of pixels (n, H, W, C) uint8 on disk. Any rank keeps, the first one does the rest."""

    result: Path

    def begin(self) -> None:
        """Make the folder that blocks lie in."""
        ...

    def done(self, blocks: list[Block]) -> bool:
        """Whether ``result`` holds all of them."""
        ...

    def has(self, block: Block) -> bool:
        """Whether all of the block's images are there."""
        ...

    def keep(self, block: Block, pixels: np.ndarray) -> None:
        """Write them."""
        ...

    def read(self, block: Block) -> np.ndarray:
        """Read them."""
        ...

    def finish(self, blocks: list[Block], labels: np.ndarray) -> None:
        """Write ``result``, from all blocks."""
        ...

    def clear(self) -> None:
        """Delete what the result has made superfluous."""
        ...


class ArrayStore:
    """``blocks/000012.npy`` while sampling, ``samples.npz`` in the end."""

    def __init__(self, folder: Path):
        self.folder, self.result = folder / "blocks", folder / "samples.npz"

    def begin(self) -> None:
        self.folder.mkdir(exist_ok=True)

    def done(self, blocks: list[Block]) -> bool:
        return self.result.exists()

    def _file(self, block: Block) -> Path:
        return self.folder / f"{block.number:06d}.npy"

    def has(self, block: Block) -> bool:
        return self._file(block).exists()

    def keep(self, block: Block, pixels: np.ndarray) -> None:
        with kept(self._file(block)) as file:
            np.save(file, pixels)

    def read(self, block: Block) -> np.ndarray:
        return np.load(self._file(block))

    def finish(self, blocks: list[Block], labels: np.ndarray) -> None:
        shape = (len(labels), *self.read(blocks[0]).shape[1:])
        write_npz(self.result, (self.read(block) for block in blocks), shape, labels)

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class PictureStore:
    """``images/000123.png`` (or .webp, lossless), one an image, and ``labels.npy`` beside the folder."""

    def __init__(self, folder: Path, kind: Literal["png", "webp"]):
        self.kind, self.result, self._labels = kind, folder / "images", folder / "labels.npy"

    def begin(self) -> None:
        self.result.mkdir(exist_ok=True)

    def done(self, blocks: list[Block]) -> bool:
        return self._labels.exists() and all(map(self.has, blocks))

    def _files(self, block: Block) -> Iterator[Path]:
        return (self.result / f"{number:06d}.{self.kind}" for number in range(block.start, block.stop))

    def has(self, block: Block) -> bool:
        return all(file.exists() for file in self._files(block))

    def keep(self, block: Block, pixels: np.ndarray) -> None:
        def write(file: Path, one: np.ndarray) -> None:
            with kept(file) as stream:
                picture(one).save(stream, self.kind, **_SAVE[self.kind])

        with ThreadPoolExecutor(_ENCODERS) as pool:
            list(pool.map(write, self._files(block), pixels))

    def read(self, block: Block) -> np.ndarray:
        images = [np.asarray(Image.open(file)) for file in self._files(block)]
        return np.stack([image if image.ndim == 3 else image[..., None] for image in images])

    def finish(self, blocks: list[Block], labels: np.ndarray) -> None:
        with kept(self._labels) as file:
            np.save(file, labels)

    def clear(self) -> None:
        pass


def open_store(folder: Path, form: Format) -> Store:
    """The store of ``form`` in ``folder``."""
    return ArrayStore(folder) if form == "npz" else PictureStore(folder, form)
