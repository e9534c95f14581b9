"""What a run acts on at its reports: rows of steps whose gradients were not finite, and ranks that are slow.

Both are measured on the devices and read one report later, on every rank at the same image, so that all act alike and the
host never waits.
"""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from erw import checkpoint
from erw.engine.engine import Engine
from erw.engine.pace import Stragglers, pace
from erw.engine.parts import PartTimes
from erw.errors import UserError
from erw.telemetry import Arriving

if TYPE_CHECKING:
    from erw.run import Run

_ROLLBACKS = 3  # to one checkpoint


class Guard:
    """One run's. ``hosts``: the name of each rank's."""

    def __init__(self, run: "Run", hosts: list[str]):
        self.run, self.ranks = run, run.ranks
        self._stragglers = Stragglers(run.config.engine.straggler, hosts)
        self._arriving: Arriving | None = None
        self._rollbacks: Counter[Path] = Counter()

    def begin_phase(self) -> None:
        """Rows of skipped steps begin anew; a report of the phase before has nothing more to say."""
        self._arriving = None

    def report(self, engine: Engine, times: PartTimes) -> dict[str, Tensor]:
        """Act on the last report, measure for the next, of ``times`` too. A collective. Returns what metrics.jsonl shows of it.

        Raises `UserError` on every rank where the run stops for gradients that are not finite.
        """
        if self._arriving is not None:
            self._act(engine, self._arriving.read())
        paces = self._paces(times) if self.ranks.count > 1 else {}
        self._arriving = Arriving({**engine.skipped_in_a_row(), **paces})
        return paces

    def _paces(self, times: PartTimes) -> dict[str, Tensor]:
        """Seconds of a step that the slowest and the median rank take before they meet the others."""
        times = self.ranks.each(pace(times))
        return {"slowest_rank": times.argmax(), "slowest_seconds": times.max(), "median_seconds": times.median()}

    def _act(self, engine: Engine, found: dict[str, float]) -> None:
        if self.ranks.count > 1:
            slowest = found["slowest_rank"], found["slowest_seconds"], found["median_seconds"]
            if line := self._stragglers.line(int(slowest[0]), *slowest[1:]):
                self.run.telemetry.say(line)
        row, end, train = int(found["skipped_row"]), int(found["skipped_row_end"]), self.run.config.train
        if train.max_skipped and row >= train.max_skipped:
            self._not_finite(engine, row, end - row * train.batch, end)

    def _not_finite(self, engine: Engine, row: int, start: int, end: int) -> None:
        run, batch = self.run, self.run.config.train.batch
        steps = f"{(start - run.phase_start) // batch + 1} to {(end - run.phase_start) // batch}"
        what = (
            f"{row} steps in a row had gradients that are not finite and were skipped: steps {steps} of phase {run.phase.name},"
            f" images {start:,} to {end:,}"
        )
        if run.config.train.on_nonfinite == "stop":
            raise UserError(
                f"{what}: go on from a checkpoint before them with a lower --optim.lr, or with --train.on_nonfinite rollback"
            )
        run.saver.wait()
        path, _ = checkpoint.agreed(self.ranks, lambda: (self._before(start), []))
        if path is None:
            raise UserError(f"{what}; there is no checkpoint of this phase before them to go back to: save more often")
        self._rollbacks[path] += 1
        if self._rollbacks[path] > _ROLLBACKS:
            raise UserError(f"{what}; {_ROLLBACKS} times weights went back to {path} for such rows: try a lower --optim.lr")
        meta = checkpoint.read_meta(path)
        engine.load(lambda key: checkpoint.read_tensors(path, key), meta.steps, meta.loss_scaler)
        run.telemetry.say(
            f"WARNING: {what}; rolled back: weights, moments and EMA are those of image {meta.images:,} again, the data go on"
            f" at image {run.images:,}"
        )
        run.telemetry.log(run.images, {"rollback": meta.images})

    def _before(self, start: int) -> Path | None:
        """The newest sound checkpoint of this phase that is older than the step at ``start``.

        The state at ``start`` itself is the one that has just met these gradients.
        """
        olds = [path for path in checkpoint.found(self.run.checkpoints) if self.run.phase_start < int(path.name) < start]
        return next((path for path in reversed(olds) if checkpoint.fault(path) is None), None)
