"""``erw compare``: what tells two runs apart, by groups."""

import math
from pathlib import Path
from typing import Any

from erw.report.differences import GROUPS, PLACES, differing, settings_by_group, versions
from erw.report.facts import shown
from erw.report.metrics import figures
from erw.report.record import RunRecord, read_runs

_BITS, _DIGITS = "EMA, SHA-256", 12  # shown to people; JSON has them all


def compare(first: Path, second: Path) -> dict[str, Any]:
    """Plain JSON values: ``runs`` (name and folder of both), ``notes`` about their files, and ``differences`` by group,
    each a name to the two values, None where a run has none.

    Groups: settings, data, seeds, bookkeeping, versions, progress, results. One without differences is empty, versions that
    were not recorded are absent. Raises `UserError` as `read_runs` does.
    """
    runs = read_runs([first, second])
    groups: dict[str, dict[str, list[Any]]] = {group: settings_by_group(runs)[group] for group in GROUPS}
    if all(run.starts for run in runs):
        groups["versions"] = differing([versions(run) for run in runs])
    groups["progress"] = differing([_progress(run) for run in runs])
    groups["results"] = differing([_results(run) for run in runs])
    notes = [f"{run.name}: {note}" for run in runs for note in run.notes]
    notes += [f"{run.name}: commit and versions were not recorded" for run in runs if not run.starts]
    return {
        "runs": [{"name": run.name, "folder": str(run.folder)} for run in runs],
        "notes": notes,
        "differences": {
            group: {k: [_plain(v) for v in values] for k, values in found.items()} for group, found in groups.items()
        },
    }


def compare_text(found: dict[str, Any]) -> str:
    """`compare`'s answer for people: what is the same in one line, then what differs, group by group."""
    names = [run["name"] for run in found["runs"]]
    differences = {group: entries for group, entries in found["differences"].items() if entries}
    same = [group for group in found["differences"] if group not in differences]
    if not differences:
        lines = [f"{names[0]} and {names[1]} do not differ"]
    else:
        lines = [f"{names[0]} and {names[1]} differ in {_counted(differences)}"]
        lines[0] += f"; the same: {', '.join(same)}" if same else ""
    for group, entries in differences.items():
        rows = [(PLACES.get(name, name), *(_short(name, value) for value in values)) for name, values in entries.items()]
        rows = [(group, *names), *rows]
        wide = [max(len(row[i]) for row in rows) for i in (0, 1)]
        lines += ["", *(f"{a:<{wide[0]}}  {b:<{wide[1]}}  {c}".rstrip() for a, b, c in rows)]
    return "\n".join([*lines, *([""] if found["notes"] else []), *found["notes"]])


def _short(name: str, value: Any) -> str:
    return value[:_DIGITS] if name == _BITS and value else shown(value)


def _counted(differences: dict[str, dict]) -> str:
    return ", ".join(f"{group} ({len(entries)})" for group, entries in differences.items())


def _progress(run: RunRecord) -> dict[str, Any]:
    phase = (run.checkpoint or {}).get("phase") if not run.metrics else run.metrics[-1].get("phase")
    return {"images": run.images, "finished": run.finished, "phase": phase, "starts": len(run.starts) or None,
            "started from": (run.checkpoint or {}).get("init_from") or None}  # fmt: skip


def _results(run: RunRecord) -> dict[str, Any]:
    """Last losses, last evaluation, costs, and which bits the newest checkpoint's EMA has."""
    last = run.metrics[-1] if run.metrics else {}
    found = {name: last.get(name) for name in last if name not in ("images", "phase", "seconds", "flops")}
    judged = run.evals[-1] if run.evals else {}
    found |= {"evaluated at image": judged.get("images"), **figures(judged)}
    seconds = run.total("device_seconds")
    found |= {"training seconds": run.total("seconds"), "training FLOP": run.total("flops")}
    found |= {"device-hours": None if seconds is None else seconds / 3600, "device": run.device or None}
    file = ((run.checkpoint or {}).get("files") or {}).get("ema.safetensors", {})
    return found | {_BITS: file.get("sha256")}


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
