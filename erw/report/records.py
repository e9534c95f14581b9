"""What ``erw eval`` said of samples in a run's folder: its records, with the protocol in one line."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erw.report.metrics import figures
from erw.report.numbers import short
from erw.report.rows import read_object


@dataclass(frozen=True)
class Judged:
    """One record's figures by one kind of ``features``; ``images`` the run had trained, None where nothing says it."""

    images: int | None
    features: str
    figures: dict[str, float]
    protocol: str


def read_records(run: Path) -> list[Judged]:
    """All of ``run``'s ``samples-*`` folders, in order of training images. Raises `UserError` for a damaged one."""
    found = []
    for file in sorted(run.glob("samples-*/*eval-*.json")):
        record = read_object(file) or {}
        results, protocol = record.get("results"), record.get("protocol")
        if isinstance(results, dict) and isinstance(protocol, dict):
            found += [_judged(file, name, values, protocol) for name, values in results.items()]
    return sorted(found, key=lambda judged: (judged.images is None, judged.images or 0, judged.features))


def _judged(file: Path, features: str, values: dict[str, Any], protocol: dict[str, Any]) -> Judged:
    drawn = protocol.get("sampling", {})
    number = file.parent.name.removeprefix("samples-")
    images = drawn.get("trained_images", int(number) if number.isdigit() else None)
    return Judged(images, features, figures(values), _words(features, drawn, protocol))


def _words(features: str, drawn: dict[str, Any], protocol: dict[str, Any]) -> str:
    """100 samples by ode, steps 20, guidance 1, labels balanced, seed 0, ema; features ...; reference of 360 images."""
    count = protocol.get("samples", {}).get("count")
    told = [f"{name} {drawn[name]}" for name in ("steps", "guidance", "labels", "seed", "weights") if name in drawn]
    words = f"{short(count)} samples by {drawn.get('sampler', 'unknown')}, {', '.join(told)}; features {features}"
    reference = protocol.get("reference", {}).get(features)
    if isinstance(reference, dict):
        return f"{words}; reference {Path(str(reference.get('source', 'unknown'))).name} ({reference.get('count')} images)"
    return f"{words}; reference {reference}"
