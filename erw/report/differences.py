"""In what runs differ, by groups: settings, data, seeds, bookkeeping, versions."""

from typing import Any

from erw.report.record import RunRecord

GROUPS = ("settings", "data", "seeds", "bookkeeping")

# Settings that decide no number of a run.
_BOOKKEEPING = {
    "train.out", "train.resume", "train.save_every", "train.keep", "train.log_every", "train.tensorboard", "train.wandb",
    "train.profile", "train.profiler", "data.workers", "data.ahead", "data.cache", "data.cache_gb",
}  # fmt: skip

# Of a row of starts.jsonl: what is no version but a place in time.
_WHEN = ("images", "date")
PLACES = {"dirty": "uncommitted changes", "device_memory_gib": "device memory, GiB"}


def group_of(name: str) -> str:
    """The group of a setting."""
    if name in _BOOKKEEPING:
        return "bookkeeping"
    if name == "train.seed":
        return "seeds"
    return "data" if name.startswith(("data.", "latents.")) else "settings"


def differing(entries: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Name to its value in each of ``entries`` where these differ, in order of first appearance; None where one has none."""
    names = dict.fromkeys(name for entry in entries for name in entry)
    found = {name: [entry.get(name) for entry in entries] for name in names}
    return {name: values for name, values in found.items() if not all(_same(value, values[0]) for value in values)}


def _same(one: Any, other: Any) -> bool:
    return one == other or (one != one and other != other)  # NaN is the same as NaN


def settings_by_group(runs: list[RunRecord]) -> dict[str, dict[str, list[Any]]]:
    """For each of ``GROUPS`` the settings that differ, see `differing`."""
    found = differing([run.settings for run in runs])
    return {group: {name: values for name, values in found.items() if group_of(name) == group} for group in GROUPS}


def versions(run: RunRecord) -> dict[str, Any]:
    """Commit, versions and device of the run's last start; nothing where that was not recorded."""
    return {name: value for name, value in (run.starts or [{}])[-1].items() if name not in _WHEN}
