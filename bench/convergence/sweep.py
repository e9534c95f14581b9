"""Chooses the settings of a study's variants before it runs: equal trials for each, on seeds that no result uses.

Every trial runs on the sweep's first seeds, the best few on more of them; the best mean over all seeds is the choice. Killed,
it goes on. What was chosen is put into the study's file, or its presets, by hand: `unlike_the_choice` says where that was not
done.
"""

import json
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from erw.bench._curves import environment, read_curve
from erw.bench.convergence.plan import amount, costs, fitted, settings_of
from erw.bench.convergence.study import Study, Sweep, Trial
from erw.config import TrainConfig
from erw.errors import UserError
from erw.files import json_bytes, whole
from erw.settings import to_dict
from train_ds import train

Rows = list[dict[str, Any]]


def trial_config(study: Study, variant: str, trial: Trial, rates: dict | None = None) -> TrainConfig:
    """The settings of a trial at the study's budget, evaluated at the end alone."""
    config = settings_of(study, study.variants[variant], trial)
    config = replace(config, train=replace(config.train, out=variant), eval=replace(config.eval, every=0))
    cost = costs(study, rates)
    return fitted(config, amount(study, cost), trial.warmup_share, cost)


def sweep(study: Study, record: Path, rates: dict | None = None) -> dict[str, Any]:
    """Run what ``record`` lacks of the study's sweep. Raises `UserError` for a study without one and a record of another."""
    plan = _sweep_of(study)
    found = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {
        "chosen_by": f"mean {study.quality}", "budget": to_dict(study.budget), **environment(), "methods": {}}  # fmt: skip

    def save() -> None:
        with whole(record) as file:
            file.write(json_bytes(found))

    for name, trials in plan.trials.items():
        rows = found["methods"].setdefault(name, [to_dict(trial) | {"runs": []} for trial in trials])
        if [_trial(row) for row in rows if _trial(row) not in trials]:
            raise UserError(f"{record} holds another sweep: name another file with --sweep-record")
        for row in rows:
            _fill(row, trial_config(study, name, _trial(row), rates), plan.seeds, study.quality, save)
        rows.sort(key=lambda row: _mean(row, plan.seeds, study.quality))
        for row in rows[: plan.go_on]:
            _fill(row, trial_config(study, name, _trial(row), rates), plan.more_seeds, study.quality, save)
        rows[: plan.go_on] = sorted(rows[: plan.go_on], key=lambda row: row[study.quality])
        save()
        print(f"{name}: {described(rows[0])}: {rows[0][study.quality]:.3f}", flush=True)
    return found


def ordered(rows: Rows, quality: str) -> Rows:
    """Those on all seeds first: a mean over few is no rival to them. Then the best."""
    return sorted(rows, key=lambda row: (-len(row["runs"]), row[quality] if row["runs"] else 0.0))


def check_finished(study: Study, found: dict[str, Any], record: Path) -> None:
    """Raise `UserError` unless ``found`` holds every run of the study's sweep."""
    plan = _sweep_of(study)
    for name, trials in plan.trials.items():
        have = sorted((len(row["runs"]) for row in found["methods"].get(name, [])), reverse=True)
        few, all_seeds = len(plan.seeds), len(plan.seeds) + len(plan.more_seeds)
        if have != [all_seeds] * plan.go_on + [few] * (len(trials) - plan.go_on):
            raise UserError(f"{record} is not finished: start python -m erw.bench.convergence {study.name} --sweep again")


def unlike_the_choice(study: Study, found: dict[str, Any]) -> list[str]:
    """The swept variants whose settings are not what the sweep chose."""
    unlike = []
    for name, rows in found["methods"].items():
        chosen, variant = trial_config(study, name, _trial(ordered(rows, study.quality)[0])), study.variants[name]
        own = trial_config(study, name, Trial(set=variant.set, warmup_share=variant.warmup_share))
        if chosen != own:
            unlike.append(name)
    return unlike


def edges(study: Study, found: dict[str, Any]) -> list[str]:
    """A sentence for each variant whose choice lies at the end of what was tried: better settings may lie beyond."""
    said = []
    for name, rows in found["methods"].items():
        chosen = _numbers(ordered(rows, study.quality)[0])
        tried = {key: {_numbers(row)[key] for row in rows if key in _numbers(row)} for key in chosen}
        ends = {key: "largest" if value == max(tried[key]) else "smallest" for key, value in chosen.items()
                if len(tried[key]) > 1 and value in (max(tried[key]), min(tried[key]))}  # fmt: skip
        if ends:
            words = " and ".join(f"the {end} {key} ({chosen[key]:g})" for key, end in ends.items())
            said.append(f"{study.labels[name]}'s choice has {words} that was tried: a better one may lie beyond.")
    return said


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    found = {key.rsplit(".", 1)[-1]: value for key, value in row["set"].items() if isinstance(value, (int, float))}
    return found | ({"warm-up share": row["warmup_share"]} if row["warmup_share"] else {})


def described(row: dict[str, Any]) -> str:
    """A trial's settings, shortly."""
    words = [f"{key.rsplit('.', 1)[-1]} {value:g}" for key, value in row["set"].items()]
    return ", ".join(words + [f"warm-up {row['warmup_share']:.0%}"] * bool(row["warmup_share"]))


def _sweep_of(study: Study) -> Sweep:
    if study.sweep is None:
        raise UserError(f"study {study.name} has no sweep: its file says what its settings come from")
    return study.sweep


def _trial(row: dict[str, Any]) -> Trial:
    return Trial(set=row["set"], warmup_share=row["warmup_share"])


def _mean(row: dict[str, Any], seeds: tuple[int, ...], quality: str) -> float:
    return statistics.fmean(run[quality] for run in row["runs"] if run["seed"] in seeds)


def _fill(row: dict[str, Any], config: TrainConfig, seeds: tuple[int, ...], quality: str, save) -> None:
    """Run ``config`` on those of ``seeds`` that ``row`` does not have yet."""
    for seed in seeds:
        if seed not in {run["seed"] for run in row["runs"]}:
            row["runs"].append(_run_once(config, seed))
            row[quality] = statistics.fmean(run[quality] for run in row["runs"])
            save()


def _run_once(config: TrainConfig, seed: int) -> dict[str, float]:
    """Train once and return the last evaluation."""
    with tempfile.TemporaryDirectory() as folder:
        train(replace(config, train=replace(config.train, out=folder, seed=seed, tensorboard=False)))
        return {"seed": seed, **read_curve(Path(folder))[-1]}
