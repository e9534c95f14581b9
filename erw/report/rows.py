"""JSON and JSON Lines as a run leaves them, also one that was killed while it wrote."""

import json
from pathlib import Path
from typing import Any

from erw.errors import UserError


def read_rows(file: Path) -> tuple[list[dict[str, Any]], str]:
    """(the objects in ``file``, a note about it or nothing); none where it does not exist.

    A last line that is no JSON is what a kill leaves: it is left out, and noted. Raises `UserError` for any other.
    """
    if not file.exists():
        return [], ""
    # A kill may cut a character in two.
    lines = [line for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not isinstance(row.get("images"), int):
                raise ValueError
        except ValueError:
            if number == len(lines):
                return rows, f"the last line of {file.name} was cut short and is left out"
            raise UserError(f"{file} line {number} is no row of a run: remove that line") from None
        rows.append(row)
    return rows, ""


def read_object(file: Path) -> dict[str, Any] | None:
    """The JSON object in ``file``, None where it does not exist. Raises `UserError` where it is none."""
    if not file.exists():
        return None
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}): restore it") from None
    if not isinstance(data, dict):
        raise UserError(f"{file} holds no JSON object: restore it")
    return data
