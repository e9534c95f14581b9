"""Semantic gap, alignment and its progression of one or more runs, as one record of plain JSON types.

Semantic gap: held-out accuracy of a linear probe on each block (REPA, Sec. 3.2, Fig. 2a). Alignment: CKNNA and linear CKA of
each block with a teacher on held-out images (Fig. 2b). Progression: the same over checkpoints (Fig. 2c).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from erw.errors import UserError
from erw.probe import linear
from erw.probe.images import Images, ImageSource, read_images
from erw.probe.network import Network, chosen_blocks, hidden_states, load_network, untrained
from erw.probe.runs import Run, described, open_runs, teacher_of
from erw.probe.similarity import NEIGHBOURS, by_token, cka, cknna, unit_rows

TIMES = (0.0, 0.25, 0.5, 0.75)
COUNT = 10_000


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """What to measure. ``layers`` None: every block; ``teacher`` "": the runs' own; ``tokens``: alignment token by token."""

    layers: tuple[int, ...] | None = None
    times: tuple[float, ...] = TIMES
    count: int = COUNT
    teacher: str = ""
    weights: str = "ema"
    tokens: bool = False
    data: Path | None = None
    held_out: Path | None = None

    def __post_init__(self):
        if not self.times or len(set(self.times)) < len(self.times) or not all(0 <= t <= 1 for t in self.times):
            given = ",".join(f"{t:g}" for t in self.times)
            raise UserError(f"--times must be different numbers in 0..1, where 0 is data and 1 is noise, not '{given}'")


def probe(paths: list[Path], config: ProbeConfig, device: torch.device, progress: bool = True) -> dict[str, Any]:
    """Measure the runs or checkpoints in ``paths``; the record is JSON, its ``rows`` are one for each network, t and block.

    Raises `UserError` for whatever does not fit.
    """
    runs = open_runs(paths, config.data)
    teacher, origin = teacher_of(runs, config.teacher)
    for run in runs:  # before the images are read: a mistake costs no minutes
        chosen_blocks(config.layers, load_network(run.checkpoints[-1], device, config.weights), run.name)
    source = ImageSource(teacher=teacher, count=config.count, held_out=config.held_out, tokens=config.tokens)
    images = read_images(runs[0].config, source, device)
    _check_tokens(config, images, runs)
    measured = _Measurement(config, images, device)
    measured.all_of(runs, progress)
    return {
        "what": "probe",
        "protocol": protocol(config, images, teacher, origin),
        "teacher": {"name": teacher, "accuracy": measured.teacher_accuracy},
        "runs": {run.name: described(run) for run in runs},
        "rows": measured.rows,
        "progression": measured.progression,
        "notes": measured.notes,
    }


def _check_tokens(config: ProbeConfig, images: Images, runs: list[Run]) -> None:
    for run in runs:
        theirs = images.held_out.teacher.shape[1]
        if config.tokens and run.config.model.tokens != theirs:
            raise UserError(
                f"--tokens: the teacher has {theirs} tokens, {run.name} has {run.config.model.tokens}: leave it out"
            )


def protocol(config: ProbeConfig, images: Images, teacher: str, origin: str) -> dict[str, Any]:
    """What was done, for the record."""
    return {
        "layers": "outputs of blocks, counted from 1",
        "times": list(config.times),
        "time": "t = 0 is data, t = 1 noise, as in REPA",
        "class": "null",
        "weights": config.weights,
        "probe": f"mean over tokens, batch norm without gain and bias, linear layer, L2 with C = {linear.STRENGTH:g}",
        "alignment": f"{'each token position, averaged' if config.tokens else 'mean over tokens'}; teacher on clean images",
        "cknna": f"k = {NEIGHBOURS}, rows of unit length, unbiased HSIC",
        "cka": "linear, biased HSIC",
        "teacher": f"{teacher} ({origin})",
        "train_images": len(images.train),
        "held_out_images": len(images.held_out),
        "held_out": images.note,
    }


class _Measurement:
    """Rows as they come."""

    def __init__(self, config: ProbeConfig, images: Images, device: torch.device):
        self.config, self.images, self.device = config, images, device
        self.rows: list[dict[str, Any]] = []
        self.progression: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self._labels = images.train.labels.to(device), images.held_out.labels.to(device)
        self._teacher = images.held_out.teacher.to(device)
        self._align(self._teacher)  # too few images: now, not after minutes
        train, held = (_pooled(split.teacher).to(device) for split in (images.train, images.held_out))
        self.teacher_accuracy = self._accuracy(train, held, "the teacher")

    def all_of(self, runs: list[Run], progress: bool) -> None:
        """An untrained network for each start (runs of one model and seed share it), then every checkpoint of the runs."""
        starts: dict[str, list[Run]] = {}
        for run in runs:
            key = repr((run.config.model, run.config.objective, run.config.train.seed))
            starts.setdefault(key, []).append(run)
        total = len(starts) + sum(len(run.checkpoints) for run in runs)
        with tqdm(total=total, unit="network", disable=not progress, leave=False) as bar:
            for sharing in starts.values():
                bar.set_description("untrained")
                self._control("untrained" if len(starts) == 1 else f"untrained {', '.join(r.name for r in sharing)}", sharing)
                bar.update()
            for run in runs:
                for checkpoint in run.checkpoints:
                    bar.set_description(f"{run.name} {checkpoint.name}")
                    self._checkpoint(run, checkpoint)
                    bar.update()

    def _control(self, name: str, runs: list[Run]) -> None:
        rows = self._measure(name, untrained(runs[0].config, self.device), probes=True)
        self.rows += rows
        for run in runs:
            self.progression += [_without(row, "accuracy") | {"run": run.name} for row in rows]

    def _checkpoint(self, run: Run, checkpoint: Path) -> None:
        """The newest one in full, older ones for the progression."""
        newest = checkpoint == run.checkpoints[-1]
        network = load_network(checkpoint, self.device, self.config.weights)
        if not newest and self.config.layers and not set(self.config.layers) & set(network.blocks):
            self._note(f"{run.name} at {network.images:,} images has none of these layers: left out")
            return
        if not network.objective.label_dropout:
            self._note(f"{run.name} was trained without label dropout: its null class never was")
        rows = self._measure(run.name, network, probes=newest)
        self.rows += rows if newest else []
        self.progression += [_without(row, "accuracy") for row in rows]

    def _measure(self, name: str, network: Network, probes: bool) -> list[dict[str, Any]]:
        blocks = chosen_blocks(self.config.layers, network, name)
        missing = sorted(set(self.config.layers or range(1, network.model.config.depth + 1)) - set(blocks))
        if missing:
            self._note(f"{name} at {network.images:,} images lies in the warm-up: no block {', '.join(map(str, missing))}")
        rows = []
        for time in self.config.times:
            held = hidden_states(network, self.images.held_out, time, blocks, self.config.tokens)
            train = hidden_states(network, self.images.train, time, blocks) if probes else {}
            for block in blocks:
                row = {"run": name, "images": network.images, "phase": network.phase, "t": time, "block": block}
                if probes:
                    row["accuracy"] = self._accuracy(train[block], _pooled(held[block]), name)
                rows.append(row | self._align(held[block]))
        return rows

    def _align(self, states: Tensor) -> dict[str, float]:
        if self.config.tokens:
            local = by_token(lambda a, b: cknna(unit_rows(a), unit_rows(b)), states, self._teacher)
            return {"cknna": local, "cka": by_token(cka, states, self._teacher)}
        return {"cknna": cknna(unit_rows(states), unit_rows(self._teacher)), "cka": cka(states, self._teacher)}

    def _accuracy(self, train: Tensor, held_out: Tensor, whose: str) -> float:
        fitted = linear.fit(train, self._labels[0])
        if not fitted.converged:
            self._note(f"a linear probe of {whose} stopped before its minimum")
        return fitted.accuracy(held_out, self._labels[1])

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def _pooled(states: Tensor) -> Tensor:
    return states.mean(dim=1) if states.ndim == 3 else states


def _without(row: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != key}
