"""Tables and sentences of a study's record, for its report and the README."""

import math
import statistics
from collections.abc import Iterable
from typing import Any

from erw.bench.convergence import figures
from erw.bench.convergence.figures import BUDGETS, READINGS, Estimate, Record
from erw.bench.convergence.targets import AXES, Reach, reaches

NAMES = {"frechet": "Frechet distance", "kid": "KID", "accuracy": "accuracy", "memorised": "memorised", "seconds": "seconds",
         "flops": "FLOPs", "images": "images"}  # fmt: skip


def label(record: Record, name: str) -> str:
    """What people call the variant ``name``."""
    return record["study"]["variants"][name]["label"]


def at_end(record: Record) -> str:
    """What all variants spent the same of."""
    return BUDGETS[record["study"]["budget"]["unit"]]


def number(value: float) -> str:
    """Two decimals, or two digits where those would say too little."""
    return f"{value:.2f}" if round(abs(value), 3) >= 0.1 or value == 0 else f"{value:.2g}"


def interval(found: Estimate) -> str:
    """Mean and 95% interval, as many decimals as the mean needs."""
    decimals = 3 if max(abs(found.low), abs(found.high)) < 1.5 else 2
    return f"{found.mean:.{decimals}f} ({found.low:.{decimals}f} to {found.high:.{decimals}f})"


def words(ours: str, theirs: str, difference: Estimate) -> str:
    """``difference``, ours less theirs, in a sentence: below or above where the interval leaves zero out, else neither."""
    how, seeds = _how(difference), f"over {difference.count} seeds"
    if how is None:
        return f"no difference shown between {ours} and {theirs}: {ours} less {theirs} is {_signed(difference)} {seeds}"
    return f"{ours} {how} {theirs} by {_sized(difference)} {seeds}"


def lines(record: Record, axes: Iterable[str] | None = None) -> list[str]:
    """A sentence for each pair: the quality at the end, then read equally far along each of ``axes``.

    Raises `UserError` for a record that is not complete and for a curve that begins too late to be read.
    """
    axes = figures.axes(record) if axes is None else list(axes)
    ends, others = figures.differences(record, "end"), {axis: figures.differences(record, axis) for axis in axes}
    sentences = []
    for (ours, theirs), end in ends.items():
        parts = [f"{words(label(record, ours), label(record, theirs), end)} at {at_end(record)}"]
        for axis, found in others.items():
            difference = found[ours, theirs]
            how = _how(difference)
            short = f"{how} by {_sized(difference)}" if how else f"no difference shown, {_signed(difference)}"
            parts.append(f"at {READINGS[axis]} {short}")
        sentences.append("; ".join(parts) + ".")
    return sentences


def result_table(record: Record) -> str:
    """Every variant: the quality at the end and equally far along the other axes, and the other figures at the end."""
    quality, *others = figures.figures(record)
    axes = figures.axes(record)
    found = {axis: figures.estimates(record, axis) for axis in ("end", *axes)}
    heads = ["method", "teacher", f"{NAMES.get(quality, quality)} at {at_end(record)}", "sd"]
    heads += [f"at {READINGS[axis]}" for axis in axes] + [NAMES.get(name, name) for name in others]
    rows = []
    for name, entry in record["variants"].items():
        end = found["end"][name]
        cells = [label(record, name), entry["settings"]["teacher"]["name"], interval(end[quality])]
        cells += [f"{end[quality].deviation:.2g}", *(interval(found[axis][name][quality]) for axis in axes)]
        rows.append([*cells, *(interval(end[figure]) for figure in others)])
    return table(heads, rows)


def table(heads: list[str], rows: Iterable[list[str]]) -> str:
    """Markdown."""
    return "\n".join(["| " + " | ".join(row) + " |" for row in (heads, ["---"] * len(heads), *rows)])


def how_read(record: Record) -> str:
    """What the figures of `result_table` and `lines` are."""
    axes = figures.axes(record)
    common = ", ".join(f"{READINGS[axis]}: {figures.common(record, axis):,.5g}" for axis in axes)
    text = (
        f"Means over {len(record['settings']['seeds'])} seeds with 95% t intervals, sd: standard deviation over seeds;"
        " differences are paired by seed, each interval for itself."
    )
    if axes:
        text += (
            f" {common[:1].upper()}{common[1:]}, the most that every run reached; between evaluations the logarithm of the"
            " distance is taken as linear. Other figures are those at the end."
        )
    for axis in figures.unreadable(record):
        text += (
            f" Nothing is read at {READINGS[axis]}: the shortest run took {figures.common(record, axis):,.5g}, and another's"
            " first evaluation came after that."
        )
    if spent := figures.uneven(record):
        unit = record["study"]["budget"]["unit"]
        text += (
            f" Runs spent from {spent[0]:.4g} to {spent[1]:.4g} {NAMES[unit]}: at {at_end(record)} is where the first of them"
            " ended, and the others are read there."
        )
    if "memorised" in figures.figures(record):
        text += (
            " Memorised: the share of samples nearer to a training image than 95% of held-out images are; new images give about"
            " 0.05, copies 1."
        )
    return text


def reach_table(record: Record) -> str:
    """What each pair's first variant needs to get as far as the second, as a share of what that one needs."""
    found = reaches(record)
    rows = []
    for pair in dict.fromkeys((reach.ours, reach.theirs) for reach in found):
        by_axis = {reach.axis: reach for reach in found if (reach.ours, reach.theirs) == pair}
        rows.append([label(record, pair[1]), label(record, pair[0]), *(_reached(by_axis[axis]) for axis in AXES)])
    return table(["to get as far as", "needs", *(f"of its {NAMES[axis]}" for axis in AXES)], rows)


def _reached(reach: Reach) -> str:
    if math.isinf(reach.ratio):
        return "not reached" + f" (but in {1 - reach.missed:.0%} of resamples)" * (reach.missed < 1)
    high = "not reached" if math.isinf(reach.high) else f"{reach.high:.2f}"
    return f"{'at most ' * reach.first}{reach.ratio:.2f} ({reach.low:.2f} to {high})"


def cost_table(record: Record) -> str:
    """Where each variant's device time and FLOPs go, means over seeds; evaluation and saving, in no budget, beside them."""
    names = dict.fromkeys(
        phase for entry in record["variants"].values() for run in entry["runs"] for phase in run["accounts"]["phases"]
    )
    heads = ["method", "images", "FLOPs", "seconds", *(f"{name}: seconds, FLOPs" for name in names), "teacher's seconds"]
    rows = []
    for name, entry in record["variants"].items():
        accounts = [run["accounts"] for run in entry["runs"]]
        total = {
            what: _mean(sum(p[what] for p in a["phases"].values()) for a in accounts) for what in ("images", "flops", "seconds")
        }
        cells = [label(record, name), f"{total['images']:,.0f}", f"{total['flops']:.3g}", f"{total['seconds']:.3g}"]
        for phase in names:
            parts = [a["phases"].get(phase) for a in accounts]
            cells.append(_part(parts, total) if all(parts) else "-")
        apart = [f"{_mean(a['other'].get(key, 0.0) for a in accounts):.2g}" for key in ("teacher", "evaluation", "saving")]
        rows.append([*cells, *apart])
    return table([*heads, "evaluation, apart", "saving, apart"], rows)


def _part(parts: list[dict[str, float]], total: dict[str, float]) -> str:
    seconds, flops = (_mean(part[what] for part in parts) for what in ("seconds", "flops"))
    return f"{seconds:.3g} ({seconds / total['seconds']:.0%}), {flops / total['flops']:.0%}"


def parts_table(record: Record) -> str:
    """How a step of each variant's phases divides into its parts, means over seeds; empty where none was timed."""
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for name, entry in record["variants"].items():
        for run in entry["runs"]:
            for phase, account in run["accounts"]["phases"].items():
                found.setdefault((name, phase), []).append(account.get("parts", {}))
    timed = {key: runs for key, runs in found.items() if all(runs)}
    parts = list(dict.fromkeys(part for runs in timed.values() for run in runs for part in run))
    rows = []
    for (name, phase), runs in timed.items():
        shares = [_mean(run.get(part, 0.0) / sum(run.values()) for run in runs) for part in parts]
        rows.append([label(record, name), phase, *(f"{share:.1%}" for share in shares)])
    return table(["method", "phase", *parts], rows) if rows else ""


def teachers_line(record: Record) -> str:
    """What the teachers' own training cost, which is in no figure; empty where nothing is known of it."""
    costs = [f"{name} {cost['training_flops']:.2g} FLOP, {cost['training_seconds']:.0f} seconds"
             for name, cost in record["teachers"].items()]  # fmt: skip
    return f"The teachers' own training, in none of these figures: {'; '.join(costs)}." if costs else ""


def footer(record: Record, file: str) -> str:
    """Hardware, versions, and where the record is."""
    hardware, versions = record["hardware"], record["versions"]
    return (
        f"{hardware['device']}, {hardware['threads']} threads, torch {versions['torch']}, deepspeed {versions['deepspeed']}."
        f" Record: `{file}`."
    )


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)


def _how(difference: Estimate) -> str | None:
    """below, above, or None where the interval holds zero."""
    return "below" if difference.high < 0 else "above" if difference.low > 0 else None


def _sized(difference: Estimate) -> str:
    """The size of a difference that has a sign, with its interval."""
    low, high = sorted((abs(difference.low), abs(difference.high)))
    return f"{number(abs(difference.mean))} (95% {number(low)} to {number(high)})"


def _signed(difference: Estimate) -> str:
    return f"{number(difference.mean)} (95% {number(difference.low)} to {number(difference.high)})"


def conclusions(record: Record) -> list[str]:
    """What the record shows and what it does not, a sentence each."""
    study: dict[str, Any] = record["study"]
    ends = figures.differences(record, "end")
    shown = [f"{label(record, a)} {_how(d)} {label(record, b)}" for (a, b), d in ends.items() if _how(d)]
    open_pairs = [f"{label(record, a)} and {label(record, b)}" for (a, b), d in ends.items() if not _how(d)]
    said = [f"Shown at {at_end(record)}, each at 95% for itself: {'; '.join(shown)}." if shown else
            f"No difference at {at_end(record)} is shown."]  # fmt: skip
    if open_pairs:
        said.append(f"Not shown, which is not the same as equal: a difference between {'; '.join(open_pairs)}.")
    if len(ends) > 1:
        said.append(
            f"{len(ends)} comparisons were made: at 95% each, about {0.05 * len(ends):.2g} of them would look like a difference"
            " where there is none."
        )
    if not study["sweep"]:
        said.append("The settings were not swept here: a method whose settings fit this data less well looks worse than it is.")
    said.append(
        f"Intervals are over {len(record['settings']['seeds'])} seeds of training on one data set, judged by one network: they"
        " say nothing of other data, sizes, lengths or judges."
    )
    return said + study["cautions"]
