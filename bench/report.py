"""Write the README's tables anew from the records: ``python -m erw.bench.report``.

Each table stands between ``<!-- NAME -->`` and ``<!-- /NAME -->``; nothing else in the README is touched.
"""

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path

from erw.bench.convergence import NAMES
from erw.errors import UserError, exits_cleanly

RESULTS = Path("bench/results")


def demo_table(results: Path) -> str:
    """The end points of `make demo`."""
    record = json.loads((results / "demo-digits.json").read_text(encoding="utf-8"))
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


def sweep_table(results: Path) -> str:
    """What the sweep chose for each method."""
    record = json.loads((results / "sweep-digits.json").read_text(encoding="utf-8"))
    lines = ["| method | trials | chosen | Frechet distance | worst trial |", "|---|---|---|---|---|"]
    measured = {"seed", "images", "flops", "seconds", "frechet", "accuracy"}
    for name, rows in record["methods"].items():
        best, worst = rows[0], rows[-1]
        chosen = ", ".join(f"{key} {value:g}" for key, value in best.items() if key not in measured)
        lines.append(f"| {NAMES[name]} | {len(rows)} | {chosen} | {best['frechet']:.2f} | {worst['frechet']:.2f} |")
    return "\n".join(lines)


TABLES: dict[str, Callable[[Path], str]] = {"demo": demo_table, "sweep": sweep_table}


def rewritten(text: str, results: Path) -> str:
    """``text`` with every table made anew. Raises `UserError` where a table's markers are missing."""
    for name, build in TABLES.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise UserError(f"README.md has no <!-- {name} --> ... <!-- /{name} --> to write the table into")
        table = build(results)
        text = pattern.sub(lambda found, table=table: f"{found[1]}{table}\n{found[2]}", text)
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
