"""A record, its tables and its figures in a folder: all written beside, then put in place one by one."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from erw.errors import UserError

Record = dict[str, Any]


def check_writable(out: Path) -> None:
    """Raise `UserError` where no folder ``out`` can be made: before the work, not after. Makes nothing."""
    there = next(folder for folder in (out.resolve(), *out.resolve().parents) if folder.exists())
    if not there.is_dir():
        raise UserError(f"--out {out}: {there} is a file: name a folder")
    if not os.access(there, os.W_OK):
        raise UserError(f"--out {out}: {there} cannot be written: name another folder")


def write_report(record: Record, out: Path, name: str, text: str,
                 figures: dict[str, Callable[[Record, Path], None]]) -> list[Path]:  # fmt: skip
    """Write NAME.json, NAME.md (``text``) and the ``figures`` into ``out``; returns the files.

    A kill leaves each file as it was or as it should be.
    """
    out.mkdir(parents=True, exist_ok=True)
    scratch = out / f".partial-{name}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    (scratch / f"{name}.json").write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    (scratch / f"{name}.md").write_text(text, encoding="utf-8")
    for file, draw in figures.items():
        draw(record, scratch / file)
    names = [f"{name}.json", f"{name}.md", *figures]
    for file in names:
        os.replace(scratch / file, out / file)
    scratch.rmdir()
    return [out / file for file in names]
