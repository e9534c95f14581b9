"""Whether a new record's rows have kept their speed over the anchor."""

import json
from pathlib import Path

from erw.bench._ladder import Plan
from erw.bench._scene import Scene
from erw.errors import UserError


def old_record(path: Path) -> dict:
    """A record of `erw.bench.step`. Raises `UserError` where it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--check {path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise UserError(f"--check {path} is not JSON") from None
    if not isinstance(content, dict) or "scenes" not in content:
        raise UserError(f"--check {path} is no record of python -m erw.bench.step")
    return content


def scenes_of(content: dict, plan: Plan) -> list[Scene]:
    """Scenes of ``content`` in which it measured rows that ``plan`` has beside the anchor. Raises `UserError` for none."""
    found = []
    for entry in content["scenes"]:
        scene = Scene(entry["model"], entry["batch"], entry["tokens"])
        names = [row.name for row in plan.table(scene)[1:]]
        if any(row["status"] == "measured" and row["to_anchor"] for row in entry["rows"] if row["name"] in names):
            found.append(scene)
    if not found:
        raise UserError("--check: that record measured none of the rows to be checked")
    return found


def falls(old: dict, new: dict, tolerance: float) -> list[str]:
    """A line for each row whose speed over the anchor fell by more than ``tolerance``, or was not measured again.

    Rows that ``new`` was not asked for are not looked at.
    """
    before = {_place(scene): scene for scene in old["scenes"]}
    found = []
    for scene in new["scenes"]:
        then = {row["name"]: row for row in before.get(_place(scene), {"rows": []})["rows"]}
        for row in scene["rows"]:
            known = then.get(row["name"], {}).get("to_anchor")
            if known is None or row["name"] == scene["anchor"]:
                continue
            where = f"{scene['model']}, {scene['tokens']} tokens, batch {scene['batch']}: {row['name']}"
            if row["status"] != "measured" or row["to_anchor"] is None:
                found.append(f"{where} was {known:.2f}x {scene['anchor']} and is now {row['status']}")
            elif row["to_anchor"] < known * (1 - tolerance):
                fell = 1 - row["to_anchor"] / known
                found.append(f"{where} fell by {fell:.0%} to {row['to_anchor']:.2f}x {scene['anchor']}, from {known:.2f}x")
    return found


def _place(scene: dict) -> tuple:
    return scene["model"], scene["tokens"], scene["batch"], scene["anchor"]
