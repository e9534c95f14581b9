"""A study's report, docs/studies/NAME.md and its picture, and its tables in the README, from its record alone."""

import json
from pathlib import Path
from typing import Any

from erw.bench.convergence import figures, words
from erw.bench.convergence.picture import draw
from erw.bench.convergence.study import Study
from erw.bench.convergence.sweep import check_finished, described, edges, ordered, unlike_the_choice
from erw.errors import UserError
from erw.files import whole

RESULTS, DOCS = Path("bench/results"), Path("docs/studies")


def record_file(name: str, results: Path = RESULTS) -> Path:
    """Where a study's record is kept."""
    return results / f"study-{name}.json"


def sweep_file(name: str, results: Path = RESULTS) -> Path:
    """Where the record of a study's sweep is kept."""
    return results / f"sweep-{name}.json"


def read_record(file: Path, command: str) -> dict[str, Any]:
    """Raises `UserError` where ``file``, which ``command`` writes, is missing or no JSON."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file} is missing: run {command}") from None
    except ValueError:
        raise UserError(f"{file} is not JSON: write it again with {command}") from None


def sweep_table(study: Study, results: Path = RESULTS) -> str:
    """What the sweep chose for each variant, the next best and the worst. Raises `UserError` for one that is not finished."""
    file = sweep_file(study.name, results)
    found = read_record(file, f"python -m erw.bench.convergence {study.name} --sweep")
    check_finished(study, found, file)
    rows = []
    for name in study.sweep.trials:
        trials = ordered(found["methods"][name], study.quality)
        values = [trial[study.quality] for trial in trials]
        rows.append([study.labels[name], str(len(trials)), described(trials[0]), f"{values[0]:.2f}", f"{values[1]:.2f}",
                     f"{max(values):.2f}"])  # fmt: skip
    seeds = len(study.sweep.seeds) + len(study.sweep.more_seeds)
    quality = words.NAMES.get(study.quality, study.quality)
    heads = ["method", "trials", "chosen settings", f"{quality}, mean over {seeds} seeds", "next best trial", "worst trial"]
    return words.table(heads, rows)


def result(record: dict[str, Any], file: Path) -> str:
    """Table, sentences, how they are read, where they come from. Raises `UserError` for a trial at a share of the budget."""
    if record["settings"]["share"] != 1:
        raise UserError(f"{file} is a trial on a share of the budget: run the study without --share")
    parts = [words.result_table(record), "\n".join(f"- {line}" for line in words.lines(record)), words.how_read(record)]
    return "\n\n".join(filter(None, [*parts, words.teachers_line(record), words.footer(record, str(file))]))


def report(study: Study, record: dict[str, Any], results: Path = RESULTS) -> str:
    """The whole page. ``study`` is the file's, ``record`` may be of an earlier one: the page says what was run."""
    file = record_file(study.name, results)
    done = record["study"]
    parts = [f"# {done['title']}", f"{done['about'].strip()} Judged by {done['judged_by']}.",
             f"Written by `python -m erw.bench.convergence {study.name} --report` from `{file}`; the study's file is"
             f" `bench/studies/{study.name}.toml`.",
             "## Result", result(record, file), f"![curves and ends](../pictures/study-{study.name}.png)"]  # fmt: skip
    if done["reach"]:
        parts += ["## What it takes to get as far", words.reach_table(record), _REACHES]
    parts += [
        "## Where the time goes",
        words.cost_table(record),
        *_divided(record),
        "## How the settings were chosen",
        *_chosen(study, results),
    ]
    parts += ["## What may be concluded, and what may not", "\n".join(f"- {line}" for line in words.conclusions(record))]
    return "\n\n".join(parts) + "\n"


def _divided(record: dict[str, Any]) -> list[str]:
    found = words.parts_table(record)
    return (
        [found, "A step of the first rank by its parts. `teacher`: its forward, or handing out cached features."]
        if found
        else []
    )


_REACHES = (
    "Each cell: what the method needs to reach the other's final quality, as a share of what that one needed, and its 95%"
    " bootstrap interval over seeds (`bench/convergence/targets.py`); below 1 is cheaper. Means over seeds are read between"
    " evaluations. Of few seeds such an interval is too narrow rather than too wide."
)


def _chosen(study: Study, results: Path) -> list[str]:
    if study.sweep is None:
        return ["No sweep: settings are the presets', changed only as the study's file says."]
    found = read_record(sweep_file(study.name, results), f"python -m erw.bench.convergence {study.name} --sweep")
    unlike = unlike_the_choice(study, found)
    said = f"Not the sweep's choice: {', '.join(study.labels[name] for name in unlike)}." if unlike else ""
    plan = study.sweep
    how = (f"One sweep of equal size for each: every trial on seeds {_listed(plan.seeds)}, the best {plan.go_on} also on"
           f" {_listed(plan.more_seeds)}; no result uses these seeds.")  # fmt: skip
    return list(filter(None, [how, sweep_table(study, results), " ".join(edges(study, found)), said]))


def _listed(seeds: tuple[int, ...]) -> str:
    return ", ".join(map(str, seeds))


def write(study: Study, record: dict[str, Any], docs: Path = DOCS, results: Path = RESULTS) -> list[Path]:
    """The page and its picture below ``docs``. Raises `UserError` for a record that is not complete."""
    figures.complete(record)
    page, picture = docs / f"{study.name}.md", docs.parent / "pictures" / f"study-{study.name}.png"
    text = report(study, record, results)
    for folder in (page.parent, picture.parent):
        folder.mkdir(parents=True, exist_ok=True)
    draw(record, picture)
    with whole(page) as stream:
        stream.write(text.encode())
    return [page, picture]
