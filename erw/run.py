"""One run's folder and its progress: where it stands, what was saved, what was spent.

runs/NAME/config.json         the resolved settings
          metrics.jsonl       one line a report, and one an evaluation; tensorboard/ holds the same
          evals.jsonl         one line an evaluation
          starts.jsonl        one line a start or resume: image, date, commit, versions, device
          accounts.json       images, seconds and their parts, FLOPs, device-hours by phase; evaluation, saving, teacher apart
          checkpoints/        see erw.checkpoint
"""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from erw import __version__, checkpoint
from erw.boards import open_boards
from erw.build import public_buffers
from erw.config import TrainConfig
from erw.engine.engine import Engine
from erw.engine.parts import Parts, PartTimes
from erw.engine.ranks import Ranks
from erw.environment import device_name, fingerprint
from erw.errors import RankError, Stopped, UserError
from erw.files import json_bytes, whole
from erw.gauges import Gauges
from erw.guard import Guard
from erw.init_from import pinned, read_start, require
from erw.settings import to_dict
from erw.telemetry import Accounts, Telemetry
from erw.types import Phase


class Run:
    """Progress of a run. ``images`` is the one integer that everything else follows from. ``hosts``: one a rank."""

    def __init__(self, config: TrainConfig, ranks: Ranks, hosts: list[str] | None = None):
        self.config, self.ranks = config, ranks
        self.folder = Path(config.train.out)
        self.checkpoints = self.folder / "checkpoints"
        self.images = 0
        (self._resumed, warnings), self._meta = checkpoint.agreed(ranks, self._find_checkpoint), None
        if self._resumed is not None:
            self._meta = checkpoint.read_meta(self._resumed)
            checkpoint.check_resumable(self._resumed)
            checkpoint.check_same_run(self._meta, to_dict(config), self._resumed)
            self.images = self._meta.images
        self._init_from = Path(self._meta.init_from) if self._meta and self._meta.init_from else pinned(config.train)
        self.accounts = Accounts(ranks.count, self._meta.accounts if self._meta else None)
        # A checkpoint written at a hand-over still holds the phase that ended.
        self.phase: Phase = config.method.phase(max(self.images - 1, 0) if self._meta else 0)
        self._before = self.images
        self._saved = self.images if self._resumed is not None and self._resumed.parent == self.checkpoints else -1
        self.phase_start = self._start_of(self.images - 1)
        ranks.barrier()
        if ranks.first:
            self._open_folder()
        boards = open_boards(config, self.images) if ranks.first else []
        train = config.train
        self.telemetry = Telemetry(self.folder, train.images, self.images, ranks.first, boards, train.progress)
        self.parts, self.gauges = Parts(ranks.device), Gauges(ranks, self.accounts)
        self.saver = checkpoint.Saver(self.checkpoints, train.keep, ranks.first, train.async_save)
        self.guard = Guard(self, hosts or [""] * ranks.count)
        for line in warnings:
            self.telemetry.say(line)
        if self._resumed is not None:
            self.telemetry.say(f"resumed {self._resumed} at image {self.images:,}, phase {self.phase.name}")

    def _find_checkpoint(self) -> tuple[Path | None, list[str]]:
        """(what to go on from, lines about damaged ones that were passed over)."""
        wish = self.config.train.resume
        existing = checkpoint.found(self.checkpoints)
        if wish == "none":
            if existing:
                raise UserError(
                    f"--train.out {self.folder} already holds a run: --resume auto goes on with it, another --out"
                    " starts a new one"
                )
            return None, []
        if wish == "auto":
            return checkpoint.newest_sound(self.checkpoints)
        if Path(wish).is_file():
            raise UserError(
                f"--resume {wish} is a file, and a run goes on from a checkpoint of its own: to start with that file's weights"
                f" use --train.init_from {wish} --train.init_convention sit, dit or repa"
            )
        return checkpoint.locate(Path(wish)), []

    def _open_folder(self) -> None:
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        checkpoint.sweep(self.checkpoints)
        with whole(self.folder / "config.json") as file:
            file.write(json_bytes(to_dict(self.config)))
        for name in ("metrics.jsonl", "evals.jsonl", "starts.jsonl"):
            _keep_rows(self.folder / name, self.images)
        if not self.complete:
            start = {"images": self.images, "ranks": self.ranks.count, "erw": __version__, **fingerprint(self.ranks.device)}
            with (self.folder / "starts.jsonl").open("a", encoding="utf-8") as rows:
                rows.write(json.dumps(start) + "\n")

    def _start_of(self, images: int) -> int:
        return max([b for b in self.config.method.boundaries() if b <= images], default=0)

    def lr_at(self, images: int) -> float:
        """Learning rate of the step that starts at ``images``, within the phase that is running."""
        later = [b for b in self.config.method.boundaries() if b > self.phase_start]
        end = min([*later, self.config.train.images])
        return self.config.optim.lr_at(images - self.phase_start, end - self.phase_start)

    @property
    def complete(self) -> bool:
        """Whether every image has been trained."""
        return self.images >= self.config.train.images

    def initial_weights(self) -> dict[str, Tensor]:
        """What ``--train.init_from`` gives the engine of the phase that begins, by public name; nothing to one that
        `restore` fills, for its checkpoint has everything."""
        if self._init_from is None:
            return {}
        if self._meta is not None and self.phase_start < self._meta.images:
            if any(boundary >= self.images for boundary in self.config.method.boundaries()):
                require(self._init_from)  # for a phase to come: now, not after hours
            return {}
        start = read_start(self.config, self._init_from)
        if self.images == 0:
            self.telemetry.say(start.report)
        return start.weights

    def restore(self, engine: Engine) -> None:
        """Put the checkpoint's tensors, if the run was resumed, into ``engine``."""
        if self._resumed is not None:
            engine.load(lambda key: checkpoint.read_tensors(self._resumed, key), self._meta.steps, self._meta.loss_scaler)

    def advance(self, phase: Phase, images: int, flops: float, losses: list[dict[str, Tensor]], engine: Engine) -> None:
        """Count a step of ``images`` images and report it where a report is due. ``losses``: one entry a micro-batch."""
        self._before, self.images = self.images, self.images + images
        self.accounts.book_step(phase.name, images, flops)
        self.telemetry.advance(images, phase.name)
        engine.count_step(self.images)
        self.parts.step()
        self._say_saved()
        if self.due(self.config.train.log_every):
            times = self._book_parts()
            paces = self.guard.report(engine, times)
            entry = self.accounts.phases[phase.name]
            values: dict[str, Any] = dict(self.ranks.mean(losses))
            values |= {"grad_norm": engine.grad_norm(), "coefficient": phase.coefficient, "phase": phase.name}
            steps = (self.images - self.phase_start) // self.config.train.batch
            values |= {"loss_scale": engine.loss_scale(), "skipped": engine.skipped(steps)}
            values |= {"lr": self.lr_at(self._before)}
            values |= {"images_per_second": entry["images"] / max(entry["seconds"], 1e-9)}
            values |= {"seconds": self.accounts.total("seconds"), "flops": self.accounts.total("flops")}
            values |= paces | self.gauges.read(times.waited)
            self.telemetry.log(self.images, {k: v for k, v in values.items() if v is not None})

    def _book_parts(self) -> PartTimes:
        times = self.parts.read()
        if times.steps:
            self.accounts.book_parts(self.phase.name, times.seconds)
        return times

    def due(self, every: int) -> bool:
        """Whether the last step passed a multiple of ``every`` images (0: never)."""
        return bool(every) and self.images // every > self._before // every

    def save(self, engine: Engine, wait: bool = False) -> None:
        """Save a checkpoint unless this image has one; every rank calls this. ``wait``: until it is written."""
        with self.accounts.apart("saving"):
            if self._saved != self.images:
                self._saved = self.images
                self.telemetry.flush()  # a run that goes on from here will not report again what came before
                meta = checkpoint.Meta(
                    images=self.images,
                    phase=engine.step_module.phase.name,
                    steps=engine.steps(),
                    config=to_dict(self.config),
                    accounts=self.accounts.state(),
                    loss_scaler=engine.scaler_state(),
                    init_from=str(self._init_from or ""),
                )
                buffers, first = public_buffers(engine.step_module), self.ranks.first
                self.saver.save(meta, lambda key: engine.read(key, keep=first, pinned=True), buffers)
            if wait:
                self.saver.wait()
        self._say_saved()

    def _say_saved(self) -> None:
        for line in self.saver.poll():
            self.telemetry.say(line)

    def begin_phase(self, phase: Phase, carried: dict[str, Tensor]) -> None:
        """Note a hand-over: ``carried`` weights go on, optimizer and EMA start anew."""
        self._book_parts()
        self.phase_start = self.images
        self.guard.begin_phase()
        self.telemetry.say(
            f"hand-over at image {self.images:,}: {len(carried)} weights carried from {self.phase.name} to {phase.name};"
            " optimizer and EMA start anew"
        )
        self.telemetry.log(self.images, {"hand_over": phase.name, "carried": len(carried)})
        self.phase = phase

    def finish(self) -> None:
        """Wait for what is being written, write the accounts and close the reports."""
        self._book_parts()
        with self.accounts.apart("saving"):
            self.saver.wait()
        if self.ranks.first:
            self.write_accounts()
        self.close()

    def stop(self, engine: Engine, why: str) -> Stopped:
        """Save and close before the end; ``why``: what asked for it. Returns what to raise."""
        if self.images:
            self.save(engine, wait=True)
        self.close()
        total = self.config.train.images
        return Stopped(f"{why}: at image {self.images:,} of {total:,}; the same command with --resume auto goes on")

    def abandon(self) -> None:
        """Before an error ends the process: let a checkpoint be written that is on its way, and end the bar."""
        self.saver.wait(self.config.engine.timeout)
        self._say_saved()
        self.telemetry.end_bar()

    def close(self) -> None:
        """Wait for what is being written and close the reports. Raises `RankError` where the last checkpoint is missing."""
        self.saver.wait()
        self._say_saved()
        self.telemetry.close()
        if self.saver.failed:
            raise RankError(f"{self.saver.failed}: make room there, and go on with --resume auto")

    def write_accounts(self) -> None:
        """accounts.json: what was spent, and on what."""
        hours = self.accounts.total("device_seconds") / 3600
        data = {"images": self.images, "device_hours": hours, "devices": self.ranks.count}
        data |= {"device": device_name(self.ranks.device)}
        text = json.dumps({**data, **self.accounts.state()}, indent=1)
        (self.folder / "accounts.json").write_text(text + "\n", encoding="utf-8")


def _keep_rows(file: Path, images: int) -> None:
    """Drop rows later than ``images``: a killed run wrote them, and the resumed one writes them again."""
    if file.exists():
        before = file.read_text(encoding="utf-8")
        after = "".join(row + "\n" for row in before.splitlines() if _images_of(row) <= images)
        if after != before:
            with whole(file) as kept:
                kept.write(after.encode())


def _images_of(row: str) -> float:
    try:
        return json.loads(row)["images"]
    except ValueError:  # the last line of a killed run may be cut short
        return float("inf")
