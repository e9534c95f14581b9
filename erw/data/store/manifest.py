"""The file that makes a folder of shards a dataset."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from erw.data.store.columns import Column
from erw.errors import UserError
from erw.files import plain_name
from erw.settings import from_dict
from erw.types import CachedTeacher, TeacherSpec

FORMAT, VERSION = "erw-store", 1
MANIFEST = "manifest.json"
_MEND = "copy it again, or prepare the dataset again"


@dataclass(frozen=True, kw_only=True)
class TeacherEntry:
    """Cached features of one teacher and the columns that hold them.

    tokens    column of (grid^2, width) patch tokens
    cls       column of (width,) class tokens; empty where there is none
    flops     of the teacher's forward for one image
    digest    SHA-256 of its weights
    """

    name: str
    width: int
    grid: int
    flops: int
    tokens: str
    cls: str = ""
    digest: str = ""

    @property
    def cached(self) -> CachedTeacher:
        """As the trainer knows it."""
        return CachedTeacher(TeacherSpec(name=self.name, width=self.width, grid=self.grid), self.flops, self.digest)


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """What a file must be.

    wide    first byte of the rows of each wide column; each row has a digest in the file
    rest    digests (XXH3-64) of the parts between those, in order
    """

    bytes: int
    sha256: str
    wide: dict[str, int]
    rest: list[str]


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """Rows of one shard and its file in each group."""

    index: int
    rows: int
    files: dict[str, FileEntry]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything about a dataset but its rows. ``facts`` is what the preparation says of itself: VAE, crop, versions."""

    format: str = FORMAT
    version: int = VERSION
    num_classes: int
    rows: int
    columns: list[Column]
    shards: list[ShardEntry]
    teachers: list[TeacherEntry] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def column(self, name: str) -> Column | None:
        """By name."""
        return next((column for column in self.columns if column.name == name), None)

    @property
    def groups(self) -> list[str]:
        """In the order of the columns."""
        return list(dict.fromkeys(column.group for column in self.columns))


def parse_manifest(text: str, file: str) -> Manifest:
    """The manifest in ``text``; ``file`` is what messages call it.

    Raises `UserError` where it is no manifest, of a newer version, or at odds with itself.
    """
    try:
        data = json.loads(text)
        if data["format"] != FORMAT:
            raise ValueError(f"format {data['format']!r}")
        version = int(data["version"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is not the manifest of a prepared dataset ({error!r}): {_MEND}") from None
    if version > VERSION:
        raise UserError(f"{file} is of version {version}, this erw reads up to {VERSION}: update erw")
    return check_manifest(data, file)


def check_manifest(data: dict[str, Any], file: str) -> Manifest:
    """The manifest that JSON types describe. Raises `UserError` where something is missing or at odds."""
    try:
        manifest = from_dict(Manifest, data)
    except UserError as error:
        raise UserError(f"{file} is not a whole manifest ({str(error).removeprefix('settings: ')}): {_MEND}") from None
    if fault := _fault(manifest):
        raise UserError(f"{file} is at odds with itself ({fault}): {_MEND}")
    return manifest


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest in ``folder``, None where there is none: then it is not, or not yet, a dataset."""
    file = folder / MANIFEST
    try:
        return parse_manifest(file.read_text(encoding="utf-8"), str(file))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read ({error}): {_MEND}") from None


def is_store(path: str) -> bool:
    """Whether a prepared dataset is at ``path``, whole or not: a URL, or a folder that looks like one."""
    if "://" in path:
        return True
    try:
        return json.loads((Path(path) / MANIFEST).read_text(encoding="utf-8")).get("format") == FORMAT
    except (OSError, ValueError, AttributeError):
        return any(Path(path).glob("latents-*.arrow"))


def _fault(manifest: Manifest) -> str:
    names = [column.name for column in manifest.columns]
    if len(set(names)) < len(names):
        return "two columns of one name"
    if odd := [group for group in manifest.groups if not plain_name(group)]:
        return f"{odd[0]!r} is no name of files of this folder"
    if manifest.rows < 1 or manifest.rows != sum(shard.rows for shard in manifest.shards):
        return f"{manifest.rows} rows, its shards have {sum(shard.rows for shard in manifest.shards)}"
    for shard in manifest.shards:
        if set(shard.files) != set(manifest.groups):
            return f"shard {shard.index} has files of {', '.join(shard.files)}, columns are of {', '.join(manifest.groups)}"
    for needed in ("latents", "labels"):
        if manifest.column(needed) is None:
            return f"no column {needed}"
    for teacher in manifest.teachers:
        shapes = {teacher.tokens: (teacher.grid**2, teacher.width)} | ({teacher.cls: (teacher.width,)} if teacher.cls else {})
        for name, shape in shapes.items():
            column = manifest.column(name)
            if column is None or column.shape != shape:
                return f"teacher {teacher.name} needs a column {name} of {shape}"
    return ""
