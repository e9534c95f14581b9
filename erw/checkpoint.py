"""Checkpoints: full fp32 tensors under public names, written so that a kill at any moment leaves a good one.

    RUN/checkpoints/000000051200/     one folder a checkpoint, named by the images seen
        weights.safetensors           fp32 masters, public SiT/REPA names, projectors and position table too
        ema.safetensors               the same names
        exp_avg.safetensors, exp_avg_sq.safetensors
        meta.json                     version, config, images, phase, steps, accounts, size and SHA-256 of each file

One that ``erw import`` wrote has no exp_avg: it can be sampled from and started from, not resumed.
A checkpoint is written into a folder with another name, synced and renamed: a folder with a number for a name is whole.
Full tensors do not know stage or ranks, so any number of ranks can read them.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from erw.config import config_from_dict
from erw.errors import UserError
from erw.optim import STATE_KEYS, WEIGHTS
from erw.settings import to_dict

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


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save(folder: Path, meta: Meta, read: Callable[[str], dict[str, Tensor]], buffers: dict[str, Tensor], *, keep: int,
         writes: bool, keys: tuple[str, ...] = KEYS) -> Path:  # fmt: skip
    """Write a checkpoint below ``folder`` and delete all but the newest ``keep``.

    ``read(key)`` is a collective that gives full tensors, for each of ``keys`` (without the moments, a checkpoint cannot be
    resumed); every rank calls `save`, the one with ``writes`` writes.
    ``buffers`` (position tables) join the weights and the EMA. One kind of tensor is in memory at a time.
    """
    final = folder / f"{meta.images:0{_DIGITS}d}"
    partial = folder / f".partial-{meta.images:0{_DIGITS}d}"
    if writes:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    files = {}
    for key in keys:
        tensors = read(key)
        if writes:
            if key in (WEIGHTS, "ema"):
                tensors |= buffers
            file = partial / f"{key}.safetensors"
            save_file({name: t.contiguous() for name, t in tensors.items()}, file)
            _sync(file)
            files[file.name] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
    if writes:
        text = json.dumps({"format": FORMAT, **meta.__dict__, "files": files}, indent=1)
        (partial / "meta.json").write_text(text, encoding="utf-8")
        _sync(partial / "meta.json")
        _sync(partial)
        if final.exists():
            # The same state under the same name: what is there is as good.
            shutil.rmtree(partial)
        else:
            os.rename(partial, final)
        _sync(folder)
        for old in found(folder)[:-keep]:
            # Renamed first: a kill halfway through the deletion must not leave half a checkpoint under a good name.
            doomed = old.with_name(f".old-{old.name}")
            os.rename(old, doomed)
            shutil.rmtree(doomed)
    return final


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


def read_meta(checkpoint: Path) -> Meta:
    """The description of ``checkpoint``. Raises `UserError` unless every file is there at its full length."""
    file = checkpoint / "meta.json"
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        files = data.pop("files")
        version = data.pop("format")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{file} cannot be read ({error!r}): delete {checkpoint} to use the one before it") from None
    if version != FORMAT:
        raise UserError(f"{checkpoint} has format {version}, this version of erw reads format {FORMAT}")
    for name, entry in files.items():
        size = (checkpoint / name).stat().st_size if (checkpoint / name).exists() else None
        if size != entry["bytes"]:
            raise UserError(
                f"{checkpoint / name} is {'missing' if size is None else 'truncated'}: delete {checkpoint} to use the"
                " one before it"
            )
    return Meta(**data)


def read_tensors(checkpoint: Path, key: str) -> dict[str, Tensor]:
    """Tensors ``key`` by public name, after their checksum was compared."""
    file = checkpoint / f"{key}.safetensors"
    expected = json.loads((checkpoint / "meta.json").read_text(encoding="utf-8"))["files"][file.name]["sha256"]
    if sha256(file) != expected:
        raise UserError(f"{file} does not match its checksum: delete {checkpoint} to use the one before it")
    try:
        return load_file(file)
    except SafetensorError as error:
        raise UserError(f"{file} cannot be read: {error}") from None


def check_resumable(checkpoint: Path) -> None:
    """Raise `UserError` where ``checkpoint`` holds weights alone."""
    if not all((checkpoint / f"{key}.safetensors").exists() for key in KEYS):
        raise UserError(
            f"{checkpoint} holds no optimizer state, so no run can go on from it: start one with --train.init_from"
            f" {checkpoint} and another --train.out"
        )


def check_same_run(meta: Meta, config: dict[str, Any], checkpoint: Path) -> None:
    """Raise `UserError` where ``config`` would not continue the run in ``checkpoint``.

    Settings that are younger than the checkpoint had their defaults in it.
    """
    written = to_dict(config_from_dict(meta.config))
    fixed = ["model", "method", "objective", "optim", "latents", "teacher", "data"]
    pairs = [(f"{s}.{k}", written[s].get(k), v) for s in fixed for k, v in config[s].items()]
    of_train = ("batch", "seed", "init_from", "init_convention")
    pairs += [(f"train.{k}", written["train"][k], config["train"][k]) for k in of_train]
    pairs += [("engine.precision", written["engine"]["precision"], config["engine"]["precision"])]
    free = {"data.path", "data.workers", "data.ahead", "data.cache", "data.cache_gb"}
    for name, before, now in pairs:
        same = list(before) == list(now) if isinstance(now, tuple) else before == now
        if not same and name not in free:
            raise UserError(
                f"{checkpoint} was written with --{name} {before}, this run has {now}: give the same, or start a new"
                f" run with another --train.out (and --train.init_from {checkpoint} for its weights)"
            )
