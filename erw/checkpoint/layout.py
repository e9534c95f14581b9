"""What a checkpoint's folder holds, and reading it: see `erw.checkpoint`."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from erw.errors import UserError
from erw.files import plain_name
from erw.optim import STATE_KEYS, WEIGHTS

FORMAT = 1
KEYS = (WEIGHTS, *STATE_KEYS)
_DIGITS = 12


@dataclass(frozen=True, kw_only=True)
class Meta:
    """What a checkpoint says about itself."""

    images: int
    phase: str
    steps: int
    config: dict[str, Any]
    accounts: dict[str, Any]
    loss_scaler: dict[str, float] = field(default_factory=dict)  # fp16 only
    init_from: str = ""  # the checkpoint or file that the run's first weights came from, if any


def sha256(file: Path) -> str:
    """The checksum of a file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_name(images: int) -> str:
    """What the checkpoint at ``images`` is called."""
    return f"{images:0{_DIGITS}d}"


def found(folder: Path) -> list[Path]:
    """Whole checkpoints below ``folder``, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_dir() and p.name.isdigit())


def locate(path: Path) -> Path:
    """The checkpoint folder that ``path`` means: itself, or the newest one of the run in ``path``."""
    if (path / "meta.json").exists():
        return path
    checkpoints = found(path / "checkpoints")
    if not checkpoints:
        raise UserError(f"'{path}' is neither a checkpoint nor the folder of a run that has one")
    return checkpoints[-1]


def _description(checkpoint: Path) -> tuple[dict[str, Any], str | None]:
    """(meta.json, what is wrong with it or with the files' lengths). Raises `UserError` for another version's format."""
    file = checkpoint / "meta.json"
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        version, files = data["format"], data["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return {}, f"{file} cannot be read ({error!r})"
    if version != FORMAT:
        raise UserError(f"{checkpoint} has format {version}, this version of erw reads format {FORMAT}")
    for name, entry in files.items():
        if not plain_name(name):
            return {}, f"{file} names {name!r}, which is no file of this folder"
        size = (checkpoint / name).stat().st_size if (checkpoint / name).exists() else None
        if size != entry["bytes"]:
            return data, f"{checkpoint / name} is {'missing' if size is None else 'truncated'}"
    return data, None


def _wrong_checksum(checkpoint: Path, name: str, expected: str) -> str | None:
    file = checkpoint / name
    try:
        return None if sha256(file) == expected else f"{file} does not match its checksum"
    except OSError as error:
        return f"{file} cannot be read ({error.strerror or error})"


def fault(checkpoint: Path) -> str | None:
    """What is wrong with ``checkpoint``, naming the file; None for one whose every byte is as it was written.

    Raises `UserError` for a checkpoint of another version, which is not damaged.
    """
    data, wrong = _description(checkpoint)
    if wrong:
        return wrong
    with ThreadPoolExecutor() as pool:
        checks = [pool.submit(_wrong_checksum, checkpoint, name, entry["sha256"]) for name, entry in data["files"].items()]
        return next((wrong for check in checks if (wrong := check.result())), None)


def _mend(checkpoint: Path) -> str:
    return f"delete {checkpoint} to use the one before it"


def read_meta(checkpoint: Path) -> Meta:
    """The description of ``checkpoint``. Raises `UserError` unless every file is there at its full length."""
    data, wrong = _description(checkpoint)
    if wrong:
        raise UserError(f"{wrong}: {_mend(checkpoint)}")
    return Meta(**{key: value for key, value in data.items() if key not in ("format", "files")})


def read_tensors(checkpoint: Path, key: str) -> dict[str, Tensor]:
    """Tensors ``key`` by public name, after their checksum was compared."""
    file = checkpoint / f"{key}.safetensors"
    files = json.loads((checkpoint / "meta.json").read_text(encoding="utf-8"))["files"]
    if wrong := _wrong_checksum(checkpoint, file.name, files[file.name]["sha256"]):
        raise UserError(f"{wrong}: {_mend(checkpoint)}")
    try:
        return load_file(file)
    except SafetensorError as error:
        raise UserError(f"{file} cannot be read: {error}") from None
