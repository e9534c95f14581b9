"""Write the README's tables anew from the records: ``python -m erw.bench.report``.

Each table stands between ``<!-- NAME -->`` and ``<!-- /NAME -->``; nothing else in the README is touched.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from erw.bench._curves import NAMES
from erw.bench._section import with_section
from erw.bench.convergence import report, words
from erw.bench.convergence.study import read_study
from erw.errors import exits_cleanly

RESULTS = Path("bench/results")


def demo_table(results: Path) -> str:
    """The end points of `make demo`."""
    record = report.read_record(results / "demo-digits.json", "python -m erw.bench.demo and keep its record there")
    lines = ["| method | images | training FLOPs | seconds | Frechet distance | accuracy |", "|---|---|---|---|---|---|"]
    for name, entry in record["methods"].items():
        last = entry["curve"][-1]
        lines.append(
            f"| {NAMES[name]} | {last['images']:,} | {last['flops']:.3g} | {last['seconds']:.0f} |"
            f" {last['frechet']:.2f} | {last['accuracy']:.3f} |"
        )
    teacher, versions, hardware = record["teacher"], record["versions"], record["hardware"]
    lines.append(
        f"\nThe teacher's own training, in none of these figures: {teacher['training_flops']:.2g} FLOP,"
        f" {teacher['training_seconds']:.0f} seconds."
    )
    lines.append(
        f"{hardware['device']}, {hardware['threads']} threads, torch {versions['torch']}, deepspeed"
        f" {versions['deepspeed']}; one seed. Record: `bench/results/demo-digits.json`."
    )
    return "\n".join(lines)


def sweep(results: Path) -> str:
    """What the sweep of the digits chose."""
    return report.sweep_table(read_study("digits"), results)


def verdict(results: Path) -> str:
    """The study of the digits: every variant, each pair's difference in a sentence, what it takes to get as far."""
    file = report.record_file("digits", results)
    record = report.read_record(file, "python -m erw.bench.convergence digits")
    return "\n\n".join([report.result(record, report.record_file("digits")), words.reach_table(record)])


TABLES: dict[str, Callable[[Path], str]] = {"demo": demo_table, "sweep": sweep, "verdict": verdict}


def rewritten(text: str, results: Path) -> str:
    """``text`` with every table made anew. Raises `UserError` where a table's markers are missing."""
    for name, build in TABLES.items():
        text = with_section(text, name, build(results), "README.md")
    return text


@exits_cleanly
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readme", type=Path, default=Path("README.md"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    text = options.readme.read_text(encoding="utf-8")
    options.readme.write_text(rewritten(text, options.results), encoding="utf-8")


if __name__ == "__main__":
    main()
