"""Trains a study's variants over its seeds and keeps the record.

Seeds take turns, and each begins with another variant, so that a machine that drifts favours none. Started again after a kill,
it goes on; started a second time beside itself, the two share the runs that are left, each run with one of them.
"""

import contextlib
import fcntl
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from erw.bench._curves import environment, read_run, teacher_training, trained_here
from erw.bench.convergence.study import Study
from erw.config import TrainConfig
from erw.errors import UserError
from erw.files import json_bytes, whole
from erw.settings import to_dict
from train_ds import train

_PASSING = ("date", "commit", "dirty")


def schedule(variants: list[str], seeds: list[int]) -> list[tuple[str, int]]:
    """(variant, seed) in the order of training: seed by seed, each beginning one variant later than the one before."""
    turns = [index % len(variants) for index in range(len(seeds))]
    return [(name, seed) for turn, seed in zip(turns, seeds, strict=True) for name in variants[turn:] + variants[:turn]]


def without_passing(entry: dict[str, Any]) -> dict[str, Any]:
    """An environment less what changes from day to day on one machine with one set of packages."""
    return {**entry, "versions": {key: value for key, value in entry["versions"].items() if key not in _PASSING}}


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Whether the run in ``folder`` is ours until the end: not while another process has it. The kernel lets go of a dead
    one's."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".claim").open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


class Runs:
    """The runs below ``out`` and their record. Raises `UserError` where ``out`` holds runs of other settings or machines."""

    def __init__(self, study: Study, out: Path, record: Path, configs: dict[str, TrainConfig], seeds: list[int], share: float):
        self.study, self.out, self.path, self.configs = study, out, record, configs
        self.seeds, self.share = seeds, share
        self.environment = environment()
        self.order = schedule(list(configs), seeds)
        for name, seed in self.order:
            self._check(name, seed)

    def folder(self, name: str, seed: int) -> Path:
        """OUT/VARIANT-SEED."""
        return self.out / f"{name}-{seed}"

    def finished(self, name: str, seed: int) -> bool:
        """Whether the run is at its end: the accounts are the last thing that one writes."""
        return (self.folder(name, seed) / "accounts.json").exists()

    def run(self) -> None:
        """Train what is neither finished nor another process's, rewriting the record after every run."""
        for number, (name, seed) in enumerate(self.order, 1):
            with claimed(self.folder(name, seed)) as ours:
                if ours and not self.finished(name, seed):
                    print(f"\nrun {number} of {len(self.order)}: {self.study.labels[name]}, seed {seed}", flush=True)
                    _write(self.folder(name, seed) / "environment.json", self.environment)
                    train(self.config(name, seed))
            self.write()

    def write(self) -> None:
        """The record as it stands; of two processes one after the other."""
        with (self.out / ".record").open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            _write(self.path, self.record())

    def missing(self) -> int:
        """Runs that are not finished."""
        return sum(not self.finished(name, seed) for name, seed in self.order)

    def config(self, name: str, seed: int) -> TrainConfig:
        """The settings of one run."""
        config, out = self.configs[name], str(self.folder(name, seed))
        return replace(config, train=replace(config.train, out=out, seed=seed, resume="auto", tensorboard=False))

    def record(self) -> dict[str, Any]:
        """All that is known of the finished runs; `erw.bench.convergence.figures` reads it."""
        settings = {"seeds": self.seeds, "variants": list(self.configs), "share": self.share,
                    "batch": next(iter(self.configs.values())).train.batch, "order": self.order}  # fmt: skip
        variants = {}
        for name, config in self.configs.items():
            runs = [self._run(name, seed) for seed in self.seeds if self.finished(name, seed)]
            variants[name] = {"settings": _without(to_dict(config), "train", ("out", "seed", "resume")), "runs": runs}
        names = {name for config in self.configs.values() for name in config.active_teacher.names}
        teachers = {name: teacher_training(name) for name in sorted(filter(trained_here, names))}
        return {"study": to_dict(self.study), "settings": settings, **self.environment, "teachers": teachers,
                "variants": variants}  # fmt: skip

    def _run(self, name: str, seed: int) -> dict[str, Any]:
        folder = self.folder(name, seed)
        passing = {key: _read(folder / "environment.json")["versions"][key] for key in _PASSING}
        return {"seed": seed, **passing, **read_run(folder)}

    def _check(self, name: str, seed: int) -> None:
        folder = self.folder(name, seed)
        if not (folder / "config.json").exists():
            return
        if not (folder / "environment.json").exists():
            raise UserError(f"--out {self.out}: {folder.name} is no run of a study: name another folder")
        # The folder may have been moved.
        now = json.loads(json.dumps(to_dict(self.config(name, seed))))
        if _without(_read(folder / "config.json"), "train", ("out",)) != _without(now, "train", ("out",)):
            raise UserError(f"--out {self.out}: {folder.name} was run with other settings: name another folder")
        if without_passing(_read(folder / "environment.json")) != without_passing(self.environment):
            raise UserError(
                f"--out {self.out}: {folder.name} was run on another machine, with other threads or versions, and seconds would"
                " not compare: name another folder"
            )


def _without(entry: dict[str, Any], section: str, keys: tuple[str, ...]) -> dict[str, Any]:
    return {**entry, section: {key: value for key, value in entry[section].items() if key not in keys}}


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def _write(file: Path, content: dict[str, Any]) -> None:
    """Replace the file, whole or not at all."""
    with whole(file) as stream:
        stream.write(json_bytes(content))
