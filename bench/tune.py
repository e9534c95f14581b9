"""Whether a pilot's choice was a good one: ``python -m erw.bench.tune --pilot FILE --record FILE --write PAGE``.

Trains nothing. Looks the warm-up that `erw tune-warmup` chose up among a study's variants, compares it with those that differ
from it in the warm-up's share and depth alone, and puts the answer into the section ``<!-- tune -->`` of the page.
"""

import argparse
from pathlib import Path
from typing import Any

from erw.bench._section import with_section
from erw.bench.convergence.figures import Estimate, Record, estimates, paired, readings
from erw.bench.convergence.report import read_record, record_file
from erw.bench.convergence.words import at_end, label, number, table
from erw.errors import UserError, exits_cleanly
from erw.files import whole

PAGE = Path("docs/tune-warmup.md")
BOUND = 1.10  # of the best fixed choice's distance, what a choice may cost
_DEPTH = "method.depth"
_SAME_LENGTH, _SAME_BUDGET = 0.02, 0.05

Pilot = dict[str, Any]


def choices(pilot: Pilot, record: Record) -> list[str]:
    """The study's variants of the pilot's preset that change nothing but the warm-up's share and depth."""
    variants = record["study"]["variants"]
    return [name for name in record["variants"]
            if variants[name]["preset"] == pilot["preset"] and not variants[name]["set"].keys() - {_DEPTH}]  # fmt: skip


def chosen(pilot: Pilot, record: Record) -> str:
    """The variant that is the pilot's choice: its depth, and its warm-up to within 2% or a batch.

    Raises `UserError` for a pilot of another budget, or of the study's seeds, and where no variant is its choice.
    """
    study, batch = record["study"], record["settings"]["batch"]
    if shared := set(pilot["seeds"]) & set(record["settings"]["seeds"]):
        raise UserError(f"the pilot was on seeds {_listed(shared)} of the study {study['name']}: run it on others (--seeds)")
    budget = max(run["curve"][-1]["flops"] for entry in record["variants"].values() for run in entry["runs"])
    if abs(pilot["budget_flops"] / budget - 1) > _SAME_BUDGET:
        raise UserError(
            f"the pilot is for a run of {pilot['budget_flops']:.4g} FLOPs, the study {study['name']} has {budget:.4g}: run"
            " erw tune-warmup with the study's settings"
        )
    wanted = pilot["warmup_images"]
    distances = {}
    for name in choices(pilot, record):
        method = record["variants"][name]["settings"]["method"]
        if (method["depth"], method["projection_depth"]) == (pilot["depth"], pilot["projection_depth"]):
            distances[name] = abs(method["warmup_images"] - wanted)
    best = min(distances, key=distances.get, default=None)
    if best is None or distances[best] > max(batch, _SAME_LENGTH * wanted):
        raise UserError(
            f"no variant of the study {study['name']} is the pilot's choice: add one with preset {pilot['preset']},"
            f" warmup_share = {share(pilot):.4g} and set {{ {_DEPTH} = {pilot['depth']} }}, and run the study"
        )
    return best


def share(pilot: Pilot) -> float:
    """The chosen warm-up's share of the run's FLOPs."""
    return pilot["share_of_pilot"] * pilot["pilot_share"]


def markdown(pilot: Pilot, record: Record, file: Path) -> str:
    """The section: a table of the choices, best first, and what it says. Raises `UserError` as `chosen` does, and for a
    study that is not complete or has nothing to compare with."""
    quality, found, ends = record["study"]["quality"], estimates(record, "end"), readings(record, "end")
    ours = chosen(pilot, record)
    fixed = sorted((name for name in choices(pilot, record) if name != ours), key=lambda name: found[name][quality].mean)
    if not fixed:
        raise UserError(f"{file} has no variant that differs from {ours} in its warm-up's share or depth alone")
    best = found[fixed[0]][quality].mean
    order = sorted([ours, *fixed], key=lambda name: found[name][quality].mean)
    rows = [_row(record, name, found[name][quality], best, name == ours) for name in order]
    seeds = len(record["settings"]["seeds"])
    heads = ["warm-up", "share of the FLOPs", "last block", f"Frechet distance, mean over {seeds} seeds", "sd", "ratio"]
    lines = [
        _bound(label(record, ours), label(record, fixed[0]), found[ours][quality].mean, best),
        _worst(label(record, ours), label(record, fixed[-1]), paired(ends[fixed[-1]], ends[ours], quality)),
    ]
    footer = f"Ratio: to the best of the other choices. Record: `{file}`; the pilot's seeds are none of its."
    return "\n\n".join([_said(pilot, record, ours), table(heads, rows), "\n".join(f"- {line}" for line in lines), footer])


def _row(record: Record, name: str, entry: Estimate, best: float, ours: bool) -> list[str]:
    method = record["variants"][name]["settings"]["method"]
    named = label(record, name) + " (the pilot's choice)" * ours
    spent = f"{record['study']['variants'][name]['warmup_share']:.1%}"
    return [named, spent, str(method["depth"]), number(entry.mean), number(entry.deviation), f"{entry.mean / best:.2f}"]


def _said(pilot: Pilot, record: Record, ours: str) -> str:
    runs, depths = len(pilot["depths"]) * len(pilot["seeds"]), ", ".join(pilot["depths"])
    return (
        f"The pilot for `{pilot['preset']}` ({runs} runs over depths {depths}, each {pilot['pilot_share']:.0%} of a run's"
        f" FLOPs) chose blocks 1 to {pilot['depth']} for {pilot['warmup_images']:,} images, {share(pilot):.1%} of the run's"
        f" FLOPs. In the study `{record['study']['name']}` that is *{label(record, ours)}*, at {at_end(record)} with the rest:"
    )


def _bound(ours: str, best: str, mean: float, other: float) -> str:
    ratio = mean / other
    if ratio <= 1:
        return f"No fixed choice is better than *{ours}* ({number(mean)}; the next, *{best}*, {number(other)})."
    how = "within" if ratio <= BOUND else "**not** within"
    return (
        f"*{ours}* has {ratio:.2f} times the distance of the best fixed choice, *{best}*: {how} the {BOUND:.2f} that is asked"
        " of it."
    )


def _worst(ours: str, worst: str, gain: Estimate) -> str:
    spread = f"the spread of {number(gain.deviation)} (standard deviation of the difference over {gain.count} seeds)"
    if gain.mean <= 0:
        return f"*{ours}* is **not** better than the worst fixed choice, *{worst}*: {number(-gain.mean)} above it."
    how = "more than" if gain.mean > gain.deviation else "**not** more than"
    return f"*{ours}* is better than the worst fixed choice, *{worst}*, by {number(gain.mean)}, {how} {spread}."


def _listed(seeds: set[int]) -> str:
    return ", ".join(map(str, sorted(seeds)))


@exits_cleanly
def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m erw.bench.tune", description=__doc__.splitlines()[0])
    parser.add_argument("--pilot", type=Path, required=True, help="tune-warmup.json, as erw tune-warmup writes it")
    parser.add_argument("--record", type=Path, default=record_file("digits-erw"), help="of the study (default digits-erw's)")
    parser.add_argument("--write", type=Path, metavar="PAGE", help=f"put it into <!-- tune --> of this page ({PAGE})")
    options = parser.parse_args(arguments)
    pilot = read_record(options.pilot, "erw tune-warmup")
    if pilot.get("what") != "tune-warmup":
        raise UserError(f"--pilot {options.pilot} is no record of erw tune-warmup: name its tune-warmup.json")
    body = markdown(pilot, read_record(options.record, "python -m erw.bench.convergence digits-erw"), options.record)
    print(body)
    if options.write is None:
        return
    try:
        text = options.write.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"--write {options.write} is not there: name {PAGE}") from None
    text = with_section(text, "tune", body, str(options.write))
    with whole(options.write) as stream:
        stream.write(text.encode())


if __name__ == "__main__":
    main()
