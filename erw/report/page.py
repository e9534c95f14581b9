"""``erw report``: several runs as one page of HTML that holds everything it shows and loads nothing."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from erw import __version__
from erw.config import TrainConfig
from erw.errors import UserError
from erw.evaluate import anchors as published
from erw.evaluate.anchors import Anchor
from erw.files import whole
from erw.plan import phase_words, phases
from erw.report.charts import COLOURS
from erw.report.differences import GROUPS, PLACES, settings_by_group, versions
from erw.report.facts import method_name, model_name, protocol_words, shown
from erw.report.metrics import figures, metric
from erw.report.numbers import duration, flops, hours, listed, short
from erw.report.panels import evaluation_charts, training_charts
from erw.report.pictures import pictures
from erw.report.record import RunRecord, read_runs
from erw.report.words import lead

Anchors = Mapping[str, Sequence[Anchor]]


def write_report(folders: list[Path], out: Path,
                 anchors_for: Callable[[TrainConfig], Sequence[Anchor]] = published.anchors_for) -> None:  # fmt: skip
    """Write the page about the runs in ``folders`` to the file ``out``, whole or not at all.

    ``anchors_for(config)`` gives the published results to show beside a run. Raises `UserError` where a folder is no run's,
    a run has no report yet, or ``out`` cannot be written.
    """
    runs = read_runs(folders)
    for run in runs:
        if not run.metrics:
            raise UserError(
                f"{run.folder} has no metrics yet (metrics.jsonl is empty or missing): wait for its first report, at"
                f" --train.log_every {run.config.train.log_every} images"
            )
    anchors = {run.name: tuple(anchors_for(run.config)) for run in runs}
    text = render(runs, anchors)
    if out.is_dir():
        raise UserError(f"--out {out} is a folder: name a file")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with whole(out) as file:
            file.write(text.encode())
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror}") from None


def render(runs: list[RunRecord], anchors: Anchors) -> str:
    """The page. ``anchors``: published results by the name of the run that they are for."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"short": short, "flops": flops, "duration": duration, "hours": hours, "shown": shown}
    return environment.get_template("page.html").render(_content(runs, anchors))


def _content(runs: list[RunRecord], anchors: Anchors) -> dict[str, Any]:
    published = list({(a.model, a.method, a.steps, a.metric, a.source): a for of in anchors.values() for a in of}.values())
    curves, how = training_charts(runs)
    groups = settings_by_group(runs)
    return {
        "title": listed([run.name for run in runs]),
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "version": __version__,
        "lead": lead(runs),
        "runs": [_run(run, index) for index, run in enumerate(runs)],
        "groups": [(group, groups[group]) for group in GROUPS if groups[group]],
        "same": len({name for run in runs for name in run.settings}) - sum(len(entries) for entries in groups.values()),
        "evaluations": evaluation_charts(runs, published),
        "metrics": [(name, metric(name).label) for name in dict.fromkeys(n for r in runs for e in r.evals for n in figures(e))],
        "published": published,
        "curves": curves,
        "curves_note": how,
        "settings": list(dict.fromkeys(name for run in runs for name in run.settings)),
        "places": {n: PLACES.get(n, n) for run in runs for n, value in versions(run).items() if value is not None},
        "one_model": len({model_name(run.config) for run in runs}) == 1,
        "protocols": _protocols(runs),
    }


def _protocols(runs: list[RunRecord]) -> dict[str, str]:
    """How runs were evaluated to which of them were."""
    found: dict[str, list[str]] = {}
    for run in runs:
        if run.evals:
            found.setdefault(protocol_words(run.config) or "by no evaluation that its settings name", []).append(run.name)
    return {words: listed(names) for words, names in found.items()}


def _run(run: RunRecord, index: int) -> dict[str, Any]:
    shots, there = pictures(run.folder)
    planned: dict[str, str] = {}
    for phase, _ in phases(run.config):
        planned[phase.name] = " / ".join(filter(None, [planned.get(phase.name), phase_words(phase)]))
    return {
        "name": run.name,
        "colour": index % COLOURS,
        "dashed": index >= COLOURS,
        "model": model_name(run.config),
        "method": method_name(run.config.method.name),
        "images": run.images,
        "planned": run.config.train.images,
        "finished": run.finished,
        "evals": [{**row, "figures": figures(row)} for row in run.evals],
        "judged": [{**vars(judged), "figures": _figures(judged.figures)} for judged in run.judged],
        "best": _headline(run),
        "pictures": shots,
        "pictures_there": there,
        "phases": [
            {"name": name, "words": planned.get(name, ""), "divided": _divided(entry), **entry}
            for name, entry in run.phases.items()
        ],
        "totals": {what: run.total(what) for what in ("seconds", "device_seconds", "flops")},
        "other": {name: seconds for name, seconds in run.other.items() if seconds >= 0.01},
        "costs_from": run.costs_from,
        "device": run.device,
        "starts": run.starts,
        "versions": versions(run),
        "notes": run.notes,
        "settings": run.settings,
        "started_from": (run.checkpoint or {}).get("init_from", ""),
    }


def _divided(entry: dict[str, Any]) -> str:
    """How the phase's steps divide into parts, the largest first; empty where they were not timed."""
    parts = entry.get("parts", {})
    total = sum(parts.values())
    shares = sorted(((seconds / total, name) for name, seconds in parts.items() if total), reverse=True)
    return ", ".join(f"{name} {share:.0%}" for share, name in shares if share >= 0.005)


def _figures(found: dict[str, float]) -> str:
    return ", ".join(f"{metric(name).label} {short(value)}" for name, value in found.items())


def _headline(run: RunRecord) -> tuple[str, float] | None:
    """(label, value) of the first metric with a better way, at the last evaluation."""
    found = figures(run.evals[-1]) if run.evals else {}
    return next(((metric(name).label, value) for name, value in found.items() if metric(name).better != "none"), None)
