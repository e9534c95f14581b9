"""Signals that ask a run to save and stop: SIGTERM, and SIGUSR1, which SLURM sends ahead of a time limit when asked to."""

import signal
import threading
from types import FrameType

ASKING = (signal.SIGTERM, signal.SIGUSR1)


class StopSignals:
    """While open, notes the first of `ASKING` that arrives, and lets none of them end the process."""

    def __init__(self):
        self.seen: str | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # no other thread may set handlers
            self._before = {number: signal.signal(number, self._note) for number in ASKING}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        # Only a note: the main thread may be anywhere, holding any lock.
        self.seen = self.seen or signal.Signals(number).name
