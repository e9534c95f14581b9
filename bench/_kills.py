"""One kill of a training job and the comparison of what is left with an undisturbed run: see `erw.bench.survive`."""

import json
import random
import shutil
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from erw.align import Erw
from erw.bench import _lives, _states
from erw.checkpoint import found
from erw.config import TrainConfig
from erw.errors import UserError
from erw.presets import preset

STEPS, WARMUP, EVERY = 96, 32, 4
CASES = {
    "none": ("digits-sit", "zero0", "fp32"),
    "repa": ("digits-repa", "zero2", "bf16"),
    "erw": ("digits-erw", "zero3", "bf16"),
}
MOMENTS = {"any": 0.4, "save": 0.3, "start": 0.15, "hand-over": 0.15}
RANKS = 2
_SURVIVOR = 60.0  # seconds that a rank has to end after the other was killed


@dataclass(frozen=True, kw_only=True)
class Kill:
    """One kill and what was found afterwards.

    moment      what was waited for; ``killed``: which ranks; ``phase``: of the last step reported before it
    partial     a checkpoint was half written when the processes ended
    newest      image of the newest checkpoint afterwards; ``announced``: of the last one that the run said it had saved
    trained     image of the last step reported: what lies beyond ``newest`` is trained again
    exits       exit codes; ``seconds`` until the last rank had ended
    faults      what differed from the undisturbed run; empty where nothing did
    """

    case: str
    moment: str
    killed: list[int]
    phase: str
    partial: bool
    newest: int
    announced: int
    trained: int
    exits: list[int | None]
    seconds: float
    faults: list[str]


class Case:
    """One method's run in a folder of its own, the undisturbed run beside it."""

    def __init__(self, name: str, folder: Path):
        self.name, self.run, self.logs = name, folder / name / "run", folder / name / "logs"
        preset_name, stage, precision = CASES[name]
        config = preset(preset_name)
        method = (
            replace(config.method, warmup_images=WARMUP * config.train.batch)
            if isinstance(config.method, Erw)
            else config.method
        )
        batch = config.train.batch
        self.boundaries = method.boundaries()
        self.config = replace(
            config,
            method=method,
            train=replace(config.train, images=STEPS * batch, save_every=EVERY * batch, log_every=batch, keep=10**6,
                          out=str(self.run), resume="auto", tensorboard=False),
            engine=replace(config.engine, ds_config=stage, precision=precision, timeout=30.0),
            eval=replace(config.eval, name="none"),
        )  # fmt: skip
        self.reference: dict[int, dict[str, str]] = {}
        self.rows: dict[int, float] = {}
        self.restarts = 0  # of the run as it is now that have been compared

    def undisturbed(self) -> None:
        """Make the run that everything is compared with, unless its folder has it."""
        out = self.run.with_name("undisturbed")
        if not (out / "accounts.json").exists():
            shutil.rmtree(out, ignore_errors=True)
            life = _lives.start([_at(self.config, out)], RANKS, self.logs)
            if life.wait(300) != [0] * RANKS:
                life.end()
                raise UserError(f"the undisturbed run of {self.name} failed: {life.said()[-2000:]}")
        self.reference = {int(path.name): _states.of_checkpoint(path) for path in found(out / "checkpoints")}
        self.rows = _losses(out)

    def kill(self, moment: str, chance: random.Random) -> Kill | None:
        """Start the run, kill it at ``moment`` and look at what is left. None where it ended before."""
        before = self._restored()
        newest_before = self.newest()
        life = _lives.start([self.config], RANKS, self.logs, _states.note_restored)
        try:
            if not self._wait(moment, life, chance):
                faults = self._compare_end(life) + self._compare_restart(before, newest_before)
                shutil.rmtree(self.run)
                if faults:
                    raise UserError(f"the run of {self.name} ended otherwise than the undisturbed one: {'; '.join(faults)}")
                return None
            killed = chance.choice([[0, 1], [0, 1], [0], [1]])
            life.signal(signal.SIGKILL, killed)
            start = time.monotonic()
            exits = life.wait(_SURVIVOR)
            return self._look(moment, killed, exits, time.monotonic() - start, life, before, newest_before)
        finally:
            life.end()

    def _wait(self, moment: str, life: _lives.Life, chance: random.Random) -> bool:
        """Until ``moment``; False where the run ended before it."""
        if moment == "start":
            return _sleep(chance.uniform(0.0, 4.0), life)
        try:
            _lives.started(life)
        except UserError:
            return False
        if moment == "hand-over":
            hand_over = self.boundaries[0] if self.boundaries else 0
            while life.alive() and self.newest() < hand_over:
                time.sleep(0.002)
            return _sleep(chance.uniform(0.0, 2.0), life)
        if moment == "any":
            return _sleep(chance.uniform(0.0, 2.5), life)
        for _ in range(chance.randint(1, 4)):  # not the first save always
            while life.alive() and self._partial():
                time.sleep(0.001)
            while life.alive() and not self._partial():
                time.sleep(0.001)
        return _sleep(chance.uniform(0.0, 0.02), life)

    def _look(self, moment, killed, exits, seconds, life, before, newest_before) -> Kill:
        announced = [int(line.rsplit("/", 1)[-1]) for line in life.said().split() if "/checkpoints/" in line]
        rows = _rows(self.run)
        last = rows[-1] if rows else {}
        faults = self._compare_restart(before, newest_before)
        for path in found(self.run / "checkpoints"):
            if _states.of_checkpoint(path) != self.reference.get(int(path.name)):
                faults.append(f"checkpoint {path.name} differs")
        newest = self.newest()
        if max(announced, default=0) > newest or newest < newest_before:
            faults.append(f"checkpoint {max([newest_before, *announced])} was lost")
        survivors = [code for rank, code in enumerate(exits) if rank not in killed]
        # A survivor that was done with its last step may end well.
        if any(code not in (69, 0) for code in survivors):
            faults.append(f"a survivor ended with {survivors}")
        return Kill(
            case=self.name, moment=moment, killed=killed, phase=last.get("phase", "before the first step"),
            partial=self._partial(), newest=newest, announced=max(announced, default=0), trained=last.get("images", 0),
            exits=exits, seconds=round(seconds, 2), faults=faults,
        )  # fmt: skip

    def _compare_restart(self, before: int, newest: int) -> list[str]:
        """What the engine of the last start held, if it came so far."""
        rows = _states.restored(self.run)[before:]
        self.restarts += len(rows)
        faults = [f"went on from {row['images']}, not from {newest}" for row in rows if row["images"] != newest]
        return faults + [
            f"the state after the restart at {row['images']} differs in {key}"
            for row in rows
            for key, value in row["state"].items()
            if value != self.reference[row["images"]][key]
        ]

    def _compare_end(self, life: _lives.Life) -> list[str]:
        faults = [] if life.wait(_SURVIVOR) == [0] * RANKS else [f"ended with {life.wait(0)}: {life.said()[-1000:]}"]
        rows = _rows(self.run)
        if [row["images"] for row in rows if "loss" in row] != sorted(self.rows) or _losses(self.run) != self.rows:
            faults.append("metrics.jsonl differs")
        if not found(self.run / "checkpoints") or _states.of_checkpoint(found(self.run / "checkpoints")[-1]) != self._last:
            faults.append("the last checkpoint differs")
        return faults

    @property
    def _last(self) -> dict[str, str]:
        return self.reference[max(self.reference)]

    def _restored(self) -> int:
        return len(_states.restored(self.run))

    def newest(self) -> int:
        """Image of the newest checkpoint; 0 without one."""
        return max((int(path.name) for path in found(self.run / "checkpoints")), default=0)

    def _partial(self) -> bool:
        folder = self.run / "checkpoints"
        return folder.is_dir() and any(path.name.startswith(".partial-") for path in folder.iterdir())


def _at(config: TrainConfig, out: Path) -> TrainConfig:
    return replace(config, train=replace(config.train, out=str(out)))


def _sleep(seconds: float, life: _lives.Life) -> bool:
    """Sleep; whether the job still runs with all its ranks."""
    time.sleep(seconds)
    return all(process.is_alive() for process in life.processes)


def _rows(run: Path) -> list[dict[str, Any]]:
    file = run / "metrics.jsonl"
    rows = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return [json.loads(row) for row in rows if row.endswith("}")]


def _losses(run: Path) -> dict[int, float]:
    return {row["images"]: row["loss"] for row in _rows(run) if "loss" in row}
