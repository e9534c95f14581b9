"""The scale measurement as Markdown, from its record."""

import statistics
from typing import Any

TITLES = {"moments": "moments", "features": "moments and features 256x768 bf16"}


def table(record: dict[str, Any]) -> str:
    """Markdown: what was written and opened, how fast it is read, and what eight GPUs need."""
    return "\n\n".join([_stores(record), _speeds(record), _needs(record), _about(record)])


def _stores(record: dict[str, Any]) -> str:
    head = ["rows", "of", "GB", "shards", "written in", "open, cold", "memory of an open store"]
    lines = [_row(head), _row(["---"] * len(head))]
    for name, facts in record["stores"].items():
        written, opened = facts["write"], facts["open"]
        lines.append(_row([
            f"{facts['rows']:,}", TITLES[name], f"{written['bytes'] / 1e9:.1f}", f"{written['shards']:,}",
            f"{written['seconds']:.0f} s", f"{statistics.median(opened['seconds']) * 1e3:.0f} ms",
            f"{statistics.median(opened['uss']):.1f} MB",
        ]))  # fmt: skip
    return "\n".join(lines)


def _speeds(record: dict[str, Any]) -> str:
    head = ["rows of", "ranks", "cache", "rows/s", "MB/s", "rows read", "USS (RSS) a loader process, MB", "... a rank, MB"]
    head += [f"of {need['short']}" for need in record["needs"]]
    lines = [_row(head), _row(["---"] * len(head))]
    for name, facts in record["stores"].items():
        for cell in facts["speed"]:
            rate, cache = cell["rows_per_second"], "warm" if cell["warm"] else "cold"
            shares = [f"{rate / need['images_per_second'][name]:.2f}" for need in record["needs"]]
            lines.append(_row([
                TITLES[name], str(cell["ranks"]), cache, f"{rate:,.0f}", f"{rate * facts['row_bytes'] / 1e6:,.0f}",
                f"{cell['rows']:,}", _memory(cell["worker"]), _memory(cell["rank"]), *shares,
            ]))  # fmt: skip
    return "\n".join(lines)


def _memory(held: dict[str, float]) -> str:
    return f"{held['uss']:,.0f} ({held['rss']:,.0f})"


def _needs(record: dict[str, Any]) -> str:
    lines = ["What eight GPUs need:", ""]
    for need in record["needs"]:
        parts = []
        for name, facts in record["stores"].items():
            rate = need["images_per_second"][name]
            parts.append(f"{rate:,.0f} rows/s of {TITLES[name]} ({rate * facts['row_bytes'] / 1e6:,.0f} MB/s)")
        lines.append(f"- {need['short']}: {', '.join(parts)}. {need['source']}")
    return "\n".join(lines)


def _about(record: dict[str, Any]) -> str:
    about = record["environment"]
    return (
        f"`erw.data.stream` in micro-batches of 32, loader processes a rank: {record['workers']}; at most"
        f" {record['seconds']:.0f} s a line; ranks are processes of this machine, which has {about['cores']} cores and"
        f" {record['memory'] / 1e9:.0f} GB of memory."
        " Cold: dropped from memory before (posix_fadvise, checked with mincore). Warm: only as many windows as fit"
        f" into half of the free memory, read before. {about['device']}, torch {about['torch']}. Record:"
        " `bench/results/store-scale.json`."
    )


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
