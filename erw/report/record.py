"""A run's folder as a record: what it was told to do, what it did, what it cost. No model is loaded."""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erw.checkpoint import found
from erw.config import TrainConfig, config_from_dict
from erw.errors import UserError
from erw.report.rows import read_object, read_rows
from erw.settings import leaves

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run.

    name        of its folder, with folders above it where another run has the same
    settings    every setting by its dotted name
    metrics     rows of metrics.jsonl that hold a loss; ``hand_overs`` (image, phase that began) are the others
    evals       rows of evals.jsonl
    starts      rows of starts.jsonl: where each start and resume ran
    phases      name to images, seconds, FLOPs and device-seconds; ``other`` to seconds that are not training
    costs_from  the file that these two come from; empty where there is none
    checkpoint  meta.json of the newest checkpoint, None without one
    device      name of the device where the run ended or last started; empty where nothing says it
    notes       what was left out of the run's files
    """

    name: str
    folder: Path
    config: TrainConfig
    settings: dict[str, Any]
    metrics: list[Row]
    hand_overs: list[tuple[int, str]]
    evals: list[Row]
    starts: list[Row]
    phases: dict[str, dict[str, float]]
    other: dict[str, float]
    costs_from: str
    checkpoint: Row | None
    device: str
    notes: tuple[str, ...]

    @property
    def images(self) -> int:
        """Training images that the folder tells of."""
        seen = [int(sum(phase["images"] for phase in self.phases.values()))]
        seen += [rows[-1]["images"] for rows in (self.metrics, self.evals) if rows]
        return max([*seen, self.checkpoint["images"] if self.checkpoint else 0])

    @property
    def finished(self) -> bool:
        """Whether all images were trained."""
        return self.images >= self.config.train.images

    def total(self, what: str) -> float | None:
        """Sum over phases of ``seconds``, ``flops`` or ``device_seconds``, None where no file says it."""
        if self.phases:
            return sum(phase[what] for phase in self.phases.values())
        return self.metrics[-1].get(what) if self.metrics else None

    @property
    def broken_at(self) -> int | None:
        """Image of the first report whose loss was NaN or infinite."""
        return next((row["images"] for row in self.metrics if not math.isfinite(row["loss"])), None)


def read_runs(folders: list[Path]) -> list[RunRecord]:
    """A record of each folder, in order. Raises `UserError` for one that is no run's, is damaged or is named twice."""
    resolved = [folder.resolve() for folder in folders]
    for place, times in Counter(resolved).items():
        if times > 1:
            raise UserError(f"'{folders[resolved.index(place)]}' is named twice: once is enough")
    return [_read_run(folder, name) for folder, name in zip(folders, _names(resolved), strict=True)]


def _names(places: list[Path]) -> list[str]:
    """The last part of each path, or as many of the last parts as no other path shares."""

    def tail(place: Path, length: int) -> str:
        return "/".join(place.parts[-length:])

    def alone(place: Path, length: int) -> bool:
        return sum(tail(other, length) == tail(place, length) for other in places) == 1

    return [tail(p, next(n for n in range(1, len(p.parts) + 1) if alone(p, n))) for p in places]


def _read_run(folder: Path, name: str) -> RunRecord:
    data = read_object(folder / "config.json") if folder.is_dir() else None
    if data is None or "train" not in data:
        raise UserError(_no_run(folder))
    try:
        config = config_from_dict(data)
    except UserError as error:
        raise UserError(f"{folder / 'config.json'}: {error}") from None
    notes, files = [], {}
    for file in ("metrics.jsonl", "evals.jsonl", "starts.jsonl"):
        files[file], note = read_rows(folder / file)
        notes += [note] if note else []
    reports = files["metrics.jsonl"]
    checkpoints = found(folder / "checkpoints")
    checkpoint = read_object(checkpoints[-1] / "meta.json") if checkpoints else None
    accounts = read_object(folder / "accounts.json")
    costs, costs_from = _costs(accounts, checkpoint)
    return RunRecord(
        name=name,
        folder=folder,
        config=config,
        settings={key: value for key, _, _, value in leaves(config)},
        metrics=[row for row in reports if isinstance(row.get("loss"), float | int)],
        hand_overs=[(row["images"], str(row["hand_over"])) for row in reports if "hand_over" in row],
        evals=files["evals.jsonl"],
        starts=files["starts.jsonl"],
        phases=costs.get("phases", {}),
        other=costs.get("other", {}),
        costs_from=costs_from,
        checkpoint=checkpoint,
        device=str((accounts or {}).get("device") or (files["starts.jsonl"] or [{}])[-1].get("device") or ""),
        notes=tuple(notes),
    )


def _costs(accounts: Row | None, checkpoint: Row | None) -> tuple[Row, str]:
    """The newer of accounts.json, which a run writes when it ends, and the newest checkpoint's accounts."""
    entries = [("accounts.json", accounts or {}), ("the newest checkpoint", (checkpoint or {}).get("accounts", {}))]
    entries = [(source, entry) for source, entry in entries if entry.get("phases")]
    if not entries:
        return {}, ""
    source, entry = max(entries, key=lambda pair: sum(phase["images"] for phase in pair[1]["phases"].values()))
    return entry, source


def _no_run(folder: Path) -> str:
    if not folder.exists():
        return f"'{folder}' does not exist: name a run's folder"
    inside = sorted(p.name for p in folder.iterdir() if (p / "config.json").exists()) if folder.is_dir() else []
    mend = f"it holds runs, name them: {', '.join(str(folder / name) for name in inside[:3])}" if inside else "name one"
    return f"'{folder}' is not a run's folder (it has no config.json of erw): {mend}"
