"""The comparison of stores as Markdown, from its record."""

import statistics
from typing import Any

CELLS = (
    ("random", True, 2, "random, cold"),
    ("random", False, 2, "random, warm"),
    ("block", True, 2, "block-shuffled, cold"),
    ("block", False, 2, "block-shuffled, warm"),
    ("block", False, 0, "block-shuffled, warm, no loader process"),
)
TITLES = {"moments": "Moments 8x32x32 fp16", "features": "Moments and features 256x768 bf16"}


def cell_name(order: str, cold: bool, workers: int) -> str:
    """Key of a cell in the record."""
    return f"{order} {'cold' if cold else 'warm'} {workers}"


def median(values: list[float]) -> float:
    """Of the rounds."""
    return statistics.median(values)


def table(record: dict[str, Any]) -> str:
    """Markdown: speed for each shape, opening, behaviour."""
    parts = [_speed(record, shape) for shape in record["shapes"]]
    if record["opening"]:
        parts.append(_opening(record))
    return "\n\n".join([*parts, _behaviour(record), _about(record)])


def _speed(record: dict[str, Any], shape: str) -> str:
    facts = record["shapes"][shape]
    head = ["store", *(title for *_, title in CELLS), "MB/s, best", "USS (PSS) a worker, MB", "written in", "GB"]
    lines = [f"**{TITLES[shape]}**, {facts['rows']:,} rows, {facts['row_bytes']:,} bytes each; rows/s, two loader processes:",
             "", _row(head), _row(["---"] * len(head))]  # fmt: skip
    for name, found in facts["stores"].items():
        if "failed" in found:
            lines.append(_row([name, found["failed"], *[""] * (len(head) - 2)]))
            continue
        speeds = [found["cells"].get(cell_name(*cell[:3])) for cell in CELLS]
        best = max(median(s["rows_per_second"]) for s in speeds if s)
        held, written = found["memory"], found["write"]
        lines.append(_row([
            name, *(_spread(s["rows_per_second"]) if s else "-" for s in speeds), f"{best * facts['row_bytes'] / 1e6:,.0f}",
            f"{held['uss']:,.0f} ({held['pss']:,.0f})", f"{written['seconds']:.1f} s", f"{written['bytes'] / 1e9:.2f}",
        ]))  # fmt: skip
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    return f"{median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"


def _opening(record: dict[str, Any]) -> str:
    facts = record["opening"]
    head = ["store", "files", "open, s", "then to the first batch, s", "memory by then, MB", "rows written in"]
    title = (
        f"**{facts['rows']:,} rows** of {facts['row_bytes']} bytes, {facts['shard_rows']:,} a file as `erw import-data` writes"
    )
    lines = [f"{title} moments, cold:", "", _row(head), _row(["---"] * len(head))]
    for name, found in facts["stores"].items():
        if "failed" in found:
            lines.append(_row([name, found["failed"], *[""] * (len(head) - 2)]))
            continue
        middle = {key: median(found[key]) for key in ("open_seconds", "first_seconds", "uss")}
        written = found["write"]
        lines.append(_row([name, f"{written['files']:,}", f"{middle['open_seconds']:.3f}", f"{middle['first_seconds']:.2f}",
                           f"{middle['uss']:,.0f}", f"{written['seconds']:.0f} s"]))  # fmt: skip
    return "\n".join(lines)


def _behaviour(record: dict[str, Any]) -> str:
    head = ["store", "version", "at odds with what this project pins", "own shuffle", "resumes exactly"]
    head += ["on two ranks instead of one", "a flipped bit", "object storage, by its documentation"]
    lines = [_row(head), _row(["---"] * len(head))]
    for name, facts in record["stores"].items():
        found = facts["faults"]
        tried = [_short(found[what]) for what in ("resume", "resume_other_ranks", "flipped_bit")]
        odds = ", ".join(facts["conflicts"]) or "nothing"
        lines.append(_row([name, facts["version"], odds, facts["shuffle"], *tried, facts["storage"]]))
    return "\n".join(lines)


def _short(text: str) -> str:
    """In a cell of the table; the record has all of it."""
    text = text.replace("|", "/").replace("\n", " ")
    if text.startswith("error that names"):
        return text.partition(":")[0]
    return text if len(text) <= 120 else text[:117] + "..."


def _about(record: dict[str, Any]) -> str:
    about = record["environment"]
    cold = max((max(cell["in_memory_before"]) for facts in record["shapes"].values() for found in facts["stores"].values()
                for key, cell in found.get("cells", {}).items() if " cold " in key), default=0.0)  # fmt: skip
    return (
        f"Median of {record['rounds']} rounds, the stores in turn, each cell a process of its own (lowest to highest): an epoch"
        f" from the first request to the last row, as fp32 moments, from shards of {record['shard_bytes'] / 2**20:.0f} MiB,"
        " four of them mixed. Cold: written out and dropped with posix_fadvise; at most"
        f" {cold:.1%} of the files' pages were in memory after it (mincore). {about['device']}, {about['cores']} cores, torch"
        f" {about['torch']}. Record: `bench/results/stores.json`."
    )


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
