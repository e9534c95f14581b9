"""Digests of a run's state, of checkpoints and of live engines, to be compared bit for bit."""

import json
import os
from pathlib import Path

from erw.build import public_buffers
from erw.cache import digest
from erw.checkpoint import KEYS, read_tensors
from erw.engine.engine import Engine
from erw.run import Run

RESTORED = "restored.jsonl"


def of_checkpoint(checkpoint: Path) -> dict[str, str]:
    """SHA-256 over names, shapes, dtypes and bytes of the weights, both moments and the EMA, after a check of the files'."""
    return {key: digest(read_tensors(checkpoint, key)) for key in KEYS}


def of_engine(engine: Engine) -> dict[str, str]:
    """The same of what an engine holds. A collective."""
    tables = public_buffers(engine.step_module)
    return {key: digest(engine.read(key) | (tables if key in ("weights", "ema") else {})) for key in KEYS}


def note_restored() -> None:
    """From now on in this process: whatever a run goes on from is read back and noted in ``restored.jsonl`` in its folder."""
    restore = Run.restore

    def noting(self: Run, engine: Engine) -> None:
        restore(self, engine)
        if self._resumed is None:
            return
        row = {"images": self.images, "from": str(self._resumed), "ranks": self.ranks.count, "state": of_engine(engine)}
        if self.ranks.first:
            with (self.folder / RESTORED).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
                file.flush()
                os.fsync(file.fileno())

    Run.restore = noting


def restored(run: Path) -> list[dict]:
    """What `note_restored` noted in the folder ``run``; a row that a kill cut short is left out."""
    file = run / RESTORED
    rows = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return [json.loads(row) for row in rows if row.endswith("}}")]
