"""A probe's record as Markdown."""

from collections.abc import Callable
from typing import Any

Record = dict[str, Any]


def markdown(record: Record) -> str:
    """The whole report: protocol, notes and tables."""
    parts = ["# Probe", protocol_text(record), accuracy_table(record), alignment_table(record, "cknna")]
    parts += [alignment_table(record, "cka"), progression_table(record)]
    return "\n\n".join(parts) + "\n"


def protocol_text(record: Record) -> str:
    """What was done, in a paragraph, and the notes."""
    how = record["protocol"]
    count = how["held_out_images"]
    text = (
        f"Hidden states: {how['layers']}; {how['time']}; class: {how['class']}; weights: {how['weights']}. Linear probe:"
        f" {how['probe']}, fitted on {how['train_images']:,} images, judged on {count:,} ({how['held_out']}); an accuracy of"
        f" 0.9 has a standard error of {(0.9 * 0.1 / count) ** 0.5:.3f}. Alignment with {how['teacher']} on the same"
        f" {count:,} images: {how['alignment']}; CKNNA: {how['cknna']}; CKA: {how['cka']}."
    )
    return "\n".join([text, *(f"- {note}" for note in record["notes"])])


def accuracy_table(record: Record) -> str:
    """Held-out accuracy of the linear probe: a line for each network and t, a column for each block."""
    head = f"## Semantic gap: accuracy of a linear probe (teacher on clean images: {record['teacher']['accuracy']:.3f})"
    return f"{head}\n\n{_by_block(record['rows'], 'accuracy')}"


def alignment_table(record: Record, measure: str) -> str:
    """CKNNA or CKA with the teacher in the same layout."""
    return f"## Alignment with {record['teacher']['name']}: {measure.upper()}\n\n{_by_block(record['rows'], measure)}"


def progression_table(record: Record) -> str:
    """The best block's CKNNA at each checkpoint."""
    rows, times = record["progression"], record["protocol"]["times"]
    lines = [_line(["network", "images", "phase", *(f"t = {t:g}" for t in times)]), "|" + "---|" * (3 + len(times))]
    for run in dict.fromkeys(row["run"] for row in rows):
        for images in sorted({row["images"] for row in rows if row["run"] == run}):
            here = [row for row in rows if (row["run"], row["images"]) == (run, images)]
            cells = []
            for t in times:
                best = max((row for row in here if row["t"] == t), key=lambda row: row["cknna"])
                cells.append(f"{best['cknna']:.3f} (block {best['block']})")
            lines.append(_line([run, f"{images:,}", here[0]["phase"] or "untrained", *cells]))
    return f"## Progression: CKNNA of the best block with {record['teacher']['name']}\n\n" + "\n".join(lines)


def _by_block(rows: list[dict[str, Any]], measure: str) -> str:
    blocks = sorted({row["block"] for row in rows})
    found = {(row["run"], row["t"], row["block"]): row[measure] for row in rows}
    lines = [_line(["network", "t", *(f"block {block}" for block in blocks)]), "|" + "---|" * (2 + len(blocks))]
    for run, t in dict.fromkeys((row["run"], row["t"]) for row in rows):
        lines.append(_line([run, f"{t:g}", *_cells(blocks, lambda block, run=run, t=t: found.get((run, t, block)))]))
    return "\n".join(lines)


def _cells(blocks: list[int], value: Callable[[int], float | None]) -> list[str]:
    return ["" if value(block) is None else f"{value(block):.3f}" for block in blocks]


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
