"""The lead of a page: in a few sentences how the runs differ and how they ended."""

import math

from erw.report.differences import PLACES, differing, settings_by_group, versions
from erw.report.facts import data_name, method_name, model_name, settings_words
from erw.report.metrics import figures, metric
from erw.report.numbers import duration, flops, listed, short
from erw.report.record import RunRecord

_COUNTS = {2: "Two", 3: "Three", 4: "Four", 5: "Five", 6: "Six"}
_SAME_COST = 1.02  # runs whose FLOPs differ by less spent the same


def lead(runs: list[RunRecord]) -> list[str]:
    """Paragraphs: what runs these are, how they ended, how they differ."""
    paragraphs = [[_who(runs)], [*_results(runs), _endings(runs), _costs(runs)], [*_differences(runs), *_cautions(runs)]]
    return [" ".join(filter(None, sentences)) for sentences in paragraphs if any(sentences)]


def _who(runs: list[RunRecord]) -> str:
    def told(run: RunRecord) -> str:
        return f"{method_name(run.config.method.name)}, a {model_name(run.config)} on {data_name(run.config)}"

    if len(runs) == 1:
        return f"{runs[0].name} is one run: {told(runs[0])}."
    count = _COUNTS.get(len(runs), str(len(runs)))
    shapes = {(model_name(run.config), data_name(run.config)) for run in runs}
    if len(shapes) > 1:
        return f"{count} runs: {listed([f'{run.name} ({told(run)})' for run in runs])}."
    model, data = shapes.pop()
    named = [f"{run.name} ({method_name(run.config.method.name)})" for run in runs]
    return f"{count} runs of a {model} on {data}: {listed(named)}."


def _differences(runs: list[RunRecord]) -> list[str]:
    if len(runs) == 1:
        return []
    groups = settings_by_group(runs)
    telling = [name for name in groups["settings"] if not name.startswith("method.")]
    method = "in the method" if any(name.startswith("method.") for name in groups["settings"]) else ""
    words = settings_words(telling[:3], groups["settings"], joined=len(telling) <= 3) if telling else ""
    more = f" and {_more(len(telling) - 3)}" if len(telling) > 3 else ""
    parts = [part for part in (method, f"in {words}{more}" if words else "") if part]
    parts += [f"in their {name}" for name in ("data", "seeds") if groups[name]]
    same = [name for name in ("data", "seeds") if not groups[name]]
    first = f"They differ {listed(parts)}" if parts else "They differ in no setting"
    first += f"; {listed(same)} {'are' if len(same) > 1 or same == ['seeds'] else 'is'} the same." if same else "."
    return [first, _versions(runs)]


def _more(count: int) -> str:
    return "one more setting" if count == 1 else f"{count} more settings"


def _versions(runs: list[RunRecord]) -> str:
    unknown = [run.name for run in runs if not run.starts]
    if unknown:
        return f"Commit and versions were not recorded in {listed(unknown)}."
    found = differing([versions(run) for run in runs])
    if not found:
        return "Commit, versions and machine are the same."
    words = settings_words([PLACES.get(name, name) for name in found], {PLACES.get(n, n): v for n, v in found.items()})
    return f"Of commit, versions and machine these differ: {words}."


def _endings(runs: list[RunRecord]) -> str:
    open_ends = [run for run in runs if not run.finished]
    parts = [f"{r.name} stands at {short(r.images)} of {short(r.config.train.images)} images" for r in open_ends]
    if not open_ends:
        return "It finished." if len(runs) == 1 else "All finished."
    done = [run.name for run in runs if run.finished]
    parts = ([f"{listed(done)} finished"] if done else []) + parts
    return f"{listed(parts)}: stopped, or still running."


def _results(runs: list[RunRecord]) -> list[str]:
    judged = [run for run in runs if run.evals]
    if not judged:
        return ["No evaluation was made."]
    sentences = [f"{listed([run.name for run in runs if not run.evals])}: not evaluated."] if len(judged) < len(runs) else []
    shared = [name for name in figures(judged[0].evals[-1]) if all(name in figures(run.evals[-1]) for run in judged)]
    chosen = next((name for name in shared if metric(name).better != "none"), None)
    if chosen is None:
        return sentences
    found = metric(chosen)
    ranked = sorted(judged, key=lambda run: _rank(run, chosen, found.better))
    values = listed([f"{run.name} {short(figures(run.evals[-1])[chosen])}" for run in ranked])
    at = {run.evals[-1]["images"] for run in judged}
    place = f"at image {short(at.pop())}" if len(at) == 1 else "each at its own last image"
    return [*sentences, f"{found.label} at the last evaluation, {found.better} being better: {values} ({place})."]


def _rank(run: RunRecord, name: str, better: str) -> float:
    value = figures(run.evals[-1])[name]
    return math.inf if math.isnan(value) else value if better == "lower" else -value


def _costs(runs: list[RunRecord]) -> str:
    spent = [value for run in runs if (value := run.total("flops")) is not None]
    took = [value for run in runs if (value := run.total("seconds")) is not None]
    if not spent or not took:
        return ""
    if len(runs) == 1:
        return f"Training spent {flops(spent[0])} FLOP in {duration(took[0])}."
    words = f"Training took {duration(min(took))} to {duration(max(took))}"
    if min(spent) > 0 and max(spent) <= _SAME_COST * min(spent):
        return f"{words} and the same FLOPs to within {max(spent) / min(spent) - 1:.1%} ({flops(max(spent))})."
    return f"{words} and {flops(min(spent))} to {flops(max(spent))} FLOP: compare the curves, not their ends."


def _cautions(runs: list[RunRecord]) -> list[str]:
    broken = [f"{run.name} from image {short(run.broken_at)}" for run in runs if run.broken_at is not None]
    sentences = [f"The loss was not a finite number in {listed(broken)}."] if broken else []
    if len(runs) > 1:
        groups = settings_by_group(runs)
        if groups["seeds"] and not groups["settings"] and not groups["data"]:
            sentences += ["They differ in the seed alone: their spread is chance."]
        elif groups["settings"] or groups["data"]:
            sentences += ["Each is a single run: a small difference may be the seed's."]
    return sentences
