"""Write the README's tables anew from the records: ``python -m erw.bench.report``.

Each table stands between ``<!-- NAME -->`` and ``<!-- /NAME -->``; nothing else in the README is touched.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from erw.bench import _verdict
from erw.bench._section import with_section
from erw.bench.convergence import NAMES
from erw.errors import UserError, exits_cleanly

RESULTS = Path("bench/results")
# Seeds of a finished sweep's trials, those that went on first.
_SWEPT = [5] * 3 + [2] * 5


def demo_table(results: Path) -> str:
    """The end points of `make demo`."""
    record = _record(results, "demo")
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
    """What the sweep chose for each method, the next best and the worst.

    Raises `UserError` for a sweep that is not finished or of another layout.
    """
    record = _record(results, "sweep")
    lines = [
        "| method | trials | chosen settings | Frechet distance, mean over five seeds | next best trial | worst trial |",
        "|---|---|---|---|---|---|",
    ]
    for name in ("sit", "repa", "erw"):
        rows = record["methods"].get(name, [])
        if any("runs" not in row for row in rows):
            raise UserError(
                f"{results / 'sweep-digits.json'} is of another layout: python -m erw.bench.sweep --out NEW writes it"
            )
        # Those on all five seeds first: a mean over two is no rival to them.
        rows = sorted(rows, key=lambda row: (-len(row["runs"]), row["frechet"] if row["runs"] else 0.0))
        if [len(row["runs"]) for row in rows] != _SWEPT:
            raise UserError(
                f"{results / 'sweep-digits.json'} is not finished: start python -m erw.bench.sweep again, it goes on"
            )
        chosen = ", ".join(f"{key} {value:g}" for key, value in rows[0]["settings"].items())
        best, following, worst = rows[0]["frechet"], rows[1]["frechet"], max(row["frechet"] for row in rows)
        lines.append(f"| {NAMES[name]} | {len(rows)} | {chosen} | {best:.2f} | {following:.2f} | {worst:.2f} |")
    return "\n".join(lines)


def verdict_table(results: Path) -> str:
    """Every variant over seeds at equal FLOPs, seconds and images, and each pair's difference in a sentence.

    Raises `UserError` for a verdict that is not finished or was run on a share of the budget.
    """
    record = _record(results, "verdict")
    if record["settings"]["images_scale"] != 1:
        raise UserError(
            f"{results / 'verdict-digits.json'} is a trial on a share of the budget: run python -m erw.bench.verdict"
        )
    _verdict.complete(record)
    found = {axis: _verdict.estimates(record, axis) for axis in _verdict.READINGS}
    heads = ["method", "teacher", "Frechet distance at equal FLOPs", "sd", "at equal seconds", "at equal images"]
    heads += ["accuracy", "memorised"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name, entry in record["variants"].items():
        end = found["flops"][name]
        cells = [NAMES[name].split(" (")[0], entry["settings"]["teacher"]["name"], _interval(end["frechet"])]
        cells += [
            f"{end['frechet'].deviation:.2f}",
            *(_interval(found[axis][name]["frechet"]) for axis in ("seconds", "images")),
        ]
        cells += [_interval(end["accuracy"], 3), _interval(end["memorised"], 3)]
        lines.append("| " + " | ".join(cells) + " |")
    settings, hardware, versions = record["settings"], record["hardware"], record["versions"]
    costs = [f"{name} {cost['training_flops']:.2g} FLOP, {cost['training_seconds']:.0f} seconds"
             for name, cost in record["teachers"].items()]  # fmt: skip
    lines += ["", *(f"- {line}" for line in _verdict.lines(record)), ""]
    lines.append(
        f"Means over {len(settings['seeds'])} seeds with 95% t intervals, sd: standard deviation over seeds; differences are"
        f" paired by seed, each interval for itself. Equal seconds: {_verdict.common(record, 'seconds'):.1f}, equal images:"
        f" {_verdict.common(record, 'images'):,.0f}, the most that every run reached; between evaluations the logarithm of the"
        " distance is taken as linear. Accuracy and memorised: at equal FLOPs. Memorised: the share of samples nearer to a"
        " training digit than 95% of held-out digits are; new digits give about 0.05, copies 1."
    )
    if costs:
        lines.append(f"\nThe teachers' own training, in none of these figures: {'; '.join(costs)}.")
    lines.append(
        f"{hardware['device']}, {hardware['threads']} threads, torch {versions['torch']}, deepspeed"
        f" {versions['deepspeed']}. Record: `bench/results/verdict-digits.json`."
    )
    return "\n".join(lines)


def _interval(found: _verdict.Estimate, decimals: int = 2) -> str:
    return f"{found.mean:.{decimals}f} ({found.low:.{decimals}f} to {found.high:.{decimals}f})"


def _record(results: Path, name: str) -> dict[str, Any]:
    """``results``/NAME-digits.json. Raises `UserError` where it is missing or no JSON."""
    file = results / f"{name}-digits.json"
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file} is missing: run python -m erw.bench.{name} and keep its record there") from None
    except ValueError:
        raise UserError(f"{file} is not JSON: write it again with python -m erw.bench.{name}") from None


TABLES: dict[str, Callable[[Path], str]] = {"demo": demo_table, "sweep": sweep_table, "verdict": verdict_table}


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
