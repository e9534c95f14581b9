"""The folder that a dataset is being prepared in: what is asked for, what is finished.

OUT/.work/job.json       the recipe, the source and the versions: all that decides bytes
         000012.json     of each finished shard: its rows, files, and what became of its images
         source.tar      a compressed tar without its compression
    preparing.jsonl      a line a start that prepared something: when, on what, how fast
"""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import erw
from erw.data.store.manifest import VERSION
from erw.environment import fingerprint, version
from erw.errors import UserError
from erw.files import json_bytes, kept
from erw.prepare.archives import TarSource
from erw.prepare.listing import Source
from erw.prepare.outcome import Outcome
from erw.prepare.recipe import Recipe
from erw.settings import to_dict

_PACKAGES = ("torch", "pillow", "diffusers", "timm", "numpy")


def asked(source: Source, path: Path, split: str | None, recipe: Recipe) -> dict[str, Any]:
    """All that decides the dataset's bytes, under the command's own names where it has them."""
    listing = source.listing
    return {
        "source": path.name,
        "split": split,
        "images": len(listing.names),
        "listing_sha256": listing.digest,
        **to_dict(recipe),
        "erw": erw.__version__,
        "store": VERSION,
        **{name: version(name) for name in _PACKAGES},
    }


class Workplace:
    """``OUT/.work``."""

    def __init__(self, out: Path):
        self.out, self.folder = out, out / ".work"

    def claim(self, wanted: dict[str, Any]) -> None:
        """Begin, or go on with the same. Raises `UserError` that names the first thing in which the work begun differs."""
        file = self.folder / "job.json"
        if not file.exists():
            if any(not found.name.startswith(".") for found in self.out.iterdir()):
                raise UserError(f"{self.out} holds files that are not of erw prepare: name another --out")
            self.folder.mkdir(exist_ok=True)
            with kept(file) as stream:
                stream.write(json_bytes(wanted))
            return
        try:
            check_same(self.out, json.loads(file.read_text(encoding="utf-8")), wanted)
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(f"{file} cannot be read ({error!r}): name another --out, or remove {self.out}") from None

    def finished(self, number: int) -> Outcome | None:
        """What became of shard ``number``, once it is whole."""
        file = self._file(number)
        if not file.exists():
            return None
        entry = json.loads(file.read_text(encoding="utf-8"))
        return Outcome(**entry | {"left_out": [tuple(pair) for pair in entry["left_out"]]})

    def note(self, outcome: Outcome) -> Outcome:
        """Note that a shard is whole. Returns it as it is read back."""
        with kept(self._file(outcome.number)) as file:
            file.write(json_bytes(asdict(outcome)))
        return self.finished(outcome.number)

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06d}.json"

    def seekable(self, source: Source) -> Source:
        """``source`` where any image can be read at once: a compressed tar loses its compression, here."""
        if not isinstance(source, TarSource) or not source.compressed:
            return source
        plain = self.folder / "source.tar"
        if not plain.exists():
            with kept(plain) as file:
                source.plain(file)
        return source.moved(plain)

    def log(self, images: int, seconds: float, devices: list[torch.device]) -> None:
        """A line about ``images`` prepared."""
        line = {"images": images, "seconds": seconds, "images_per_second": images / seconds, "processes": len(devices)}
        with (self.out / "preparing.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line | fingerprint(devices[0])) + "\n")

    def clear(self) -> None:
        """Delete it: the dataset is whole."""
        shutil.rmtree(self.folder)


def check_same(out: Path, before: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise `UserError` unless both describe the same dataset."""
    for name in (*wanted, *before):
        if name != "source" and before.get(name) != wanted.get(name):  # a source may move
            what = f"{name} {before.get(name)}, this command has {wanted.get(name)}"
            if name in ("images", "listing_sha256"):
                what = "other images than the source has now"
            raise UserError(f"{out} was begun with {what}: give the same to go on, or name another --out")
