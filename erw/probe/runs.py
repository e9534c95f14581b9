"""The runs that are probed: their checkpoints, names and teacher."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erw.config import TrainConfig
from erw.errors import UserError
from erw.probe.images import with_data
from erw.probe.network import checkpoints_of, config_of
from erw.settings import to_dict

# Settings of the data that say how it is read, not which.
_HOW = {"workers": 0, "ahead": 0, "cache": "", "cache_gb": 0.0}


@dataclass(frozen=True)
class Run:
    """A run to probe: its name in tables, its checkpoints (oldest first) and the newest one's settings."""

    name: str
    checkpoints: list[Path]
    config: TrainConfig


def open_runs(paths: list[Path], data: Path | None = None) -> list[Run]:
    """The runs or checkpoints in ``paths``. Raises `UserError` where there is none, and where their images differ."""
    for path in paths:
        if not path.exists():
            raise UserError(f"'{path}' does not exist: name a run's folder or a checkpoint")
    listed = [checkpoints_of(path) for path in paths]
    runs = [Run(name, checkpoints, with_data(config_of(checkpoints[-1]), data))
            for name, checkpoints in zip(_names(paths, listed), listed, strict=True)]  # fmt: skip
    first = runs[0]
    for run in runs[1:]:
        for section in ("data", "latents"):
            mine, theirs = (to_dict(getattr(r.config, section)) | _HOW for r in (run, first))
            if mine != theirs:
                raise UserError(f"{run.name} and {first.name} were trained with other --{section}.*: probe them apart")
    return runs


def teacher_of(runs: list[Run], named: str) -> tuple[str, str]:
    """(teacher, where its name is from): ``named``, or else the one that all runs with a teacher align with.

    Raises `UserError` where that is none or several.
    """
    if named:
        if "," in named:
            raise UserError(f"--teacher takes one teacher at a time, not '{named}'")
        return named, "by name"
    own = {run.name: run.config.active_teacher.names for run in runs if run.config.active_teacher.names}
    names = sorted({name for found in own.values() for name in found})
    if not names:
        raise UserError("none of these runs aligns with a teacher: name one with --teacher, such as digits-contrastive")
    if len(names) > 1:
        raise UserError(f"these runs align with {' and '.join(names)}: choose one with --teacher")
    return names[0], f"of {', '.join(own)}"


def described(run: Run) -> dict[str, Any]:
    """What the record says of a run."""
    method = run.config.method.name
    return {"method": "SiT or DiT, no alignment" if method == "none" else method, "checkpoint": run.checkpoints[-1].name,
            "seed": run.config.train.seed}  # fmt: skip


def _names(paths: list[Path], checkpoints: list[list[Path]]) -> list[str]:
    """The folders' names, with the checkpoint's where that was named; with as much of the path as tells them apart."""
    short = [path.resolve().name if found[-1] != path else _checkpoint_name(path.resolve())
             for path, found in zip(paths, checkpoints, strict=True)]  # fmt: skip
    if len({path.resolve() for path in paths}) < len(paths):
        raise UserError("the same run was named twice")
    whole = [str(path.resolve()) for path in paths]
    shared = os.path.commonpath([str(Path(path).parent) for path in whole])
    return short if len(set(short)) == len(short) else [os.path.relpath(path, shared) for path in whole]


def _checkpoint_name(path: Path) -> str:
    run = path.parent.parent.name if path.parent.name == "checkpoints" else ""
    return f"{run}@{int(path.name):,}" if run and path.name.isdigit() else path.name
