"""What a run says: progress bar, metrics.jsonl, boards; and what it costs: images, seconds and FLOPs by account."""

import contextlib
import copy
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from erw.boards import Board
from erw.progress import Style, progress
from erw.redact import redacted


class Accounts:
    """Images, seconds, FLOPs and device-seconds of each phase and seconds of its steps' parts; everything else is kept apart.

    Saved with every checkpoint, so that a resumed run goes on counting.
    """

    def __init__(self, devices: int, saved: dict[str, Any] | None = None):
        saved = saved or {}
        self.devices = devices
        self.phases: dict[str, dict[str, float]] = saved.get("phases", {})
        self.other: dict[str, float] = saved.get("other", {})
        self._mark = time.perf_counter()

    def restart_clock(self) -> None:
        """Forget the time since the last booking (set-up before the loop)."""
        self._mark = time.perf_counter()

    def book_step(self, phase: str, images: int, flops: float) -> None:
        """Book the time since the last booking, ``images`` and ``flops`` to a phase."""
        now = time.perf_counter()
        entry = self.phases.setdefault(phase, {"images": 0, "seconds": 0.0, "flops": 0.0, "device_seconds": 0.0})
        entry["images"] += images
        entry["seconds"] += now - self._mark
        entry["device_seconds"] += (now - self._mark) * self.devices
        entry["flops"] += flops
        self._mark = now

    def book_parts(self, phase: str, seconds: dict[str, float]) -> None:
        """Book the first rank's ``seconds`` by part of a step, which are within the phase's own."""
        entry = self.phases[phase].setdefault("parts", {})
        for name, spent in seconds.items():
            entry[name] = entry.get(name, 0.0) + spent

    @contextmanager
    def apart(self, account: str) -> Iterator[None]:
        """Book the time inside to ``account`` (evaluation, saving, teacher ...), not to training."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.other[account] = self.other.get(account, 0.0) + spent
            self._mark += spent

    def total(self, what: str) -> float:
        """Sum over phases of ``images``, ``seconds``, ``flops`` or ``device_seconds``."""
        return sum(entry[what] for entry in self.phases.values())

    def state(self) -> dict[str, Any]:
        """For a checkpoint, and for accounts.json: as they are now."""
        return copy.deepcopy({"phases": self.phases, "other": self.other})


class Arriving:
    """Numbers, some of them 0-d tensors, on their way to the host: one copy that nobody waits for until `read`."""

    def __init__(self, values: dict[str, Any]):
        self._values, self._event = dict(values), None
        self._names = [name for name, value in values.items() if isinstance(value, Tensor)]
        if self._names:
            # fp64 holds every fp32 exactly. A copy that does not block goes to pinned memory.
            device = next((t.device for t in map(values.get, self._names) if t.is_cuda), torch.device("cpu"))
            tensors = [values[name].detach().to(device, torch.float64, non_blocking=True) for name in self._names]
            self._numbers = torch.stack(tensors).to("cpu", non_blocking=True)
            if device.type == "cuda":
                self._event = torch.cuda.Event()
                self._event.record()

    def read(self) -> dict[str, Any]:
        """The values as Python's, in their order. Waits for what was computed before the copy, not for what came after."""
        if self._event is not None:
            self._event.synchronize()
        if self._names:
            self._values |= dict(zip(self._names, self._numbers.tolist(), strict=True))
        return self._values


class Telemetry:
    """Reports of one run, from the first rank only. Device values are read one report late, so the loop never waits."""

    def __init__(self, folder: Path, total_images: int, start: int, speaks: bool, boards: list[Board], style: Style = "auto"):
        self.speaks = speaks
        self._pending: list[tuple[int, Arriving]] = []
        self._disk_said = False
        if not speaks:
            return
        self._file = (folder / "metrics.jsonl").open("a", encoding="utf-8")
        self._boards = boards
        self._progress = progress(style, total_images, start)

    def advance(self, images: int, phase: str) -> None:
        """Count on."""
        if self.speaks:
            self._progress.advance(images, phase)

    def log(self, images: int, values: dict[str, Any]) -> None:
        """Queue ``values`` (numbers or 0-d tensors) for image ``images`` and write what was queued before."""
        if self.speaks:
            self.flush()
            self._pending.append((images, Arriving(values)))

    def flush(self) -> None:
        """Write everything queued."""
        for images, values in self._pending:
            row = values.read()
            self._write({"images": images, **row})
            self._progress.show(images, row)
            for board in self._boards:
                try:
                    board.write(images, {key: value for key, value in row.items() if isinstance(value, (int, float))})
                except OSError as error:
                    self._disk(error, type(board).__name__)
        self._pending.clear()

    def _write(self, row: dict[str, Any] | None) -> None:
        """Append ``row`` (None: nothing more). What a full disk does not take stays in the buffer for the next time."""
        try:
            if row is not None:
                self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        except OSError as error:
            self._disk(error, "metrics.jsonl")

    def _disk(self, error: OSError, what: str) -> None:
        """A disk that takes no reports is said once; training goes on."""
        if not self._disk_said:
            self._disk_said = True
            self.say(f"WARNING: {what} cannot be written ({error.strerror or error}); training goes on")

    def say(self, text: str) -> None:
        """One line above the bar."""
        if self.speaks:
            tqdm.write(redacted(text))

    def end_bar(self) -> None:
        """Leave the bar as it is; what is said next has a line of its own."""
        if self.speaks:
            self._progress.close()

    def close(self) -> None:
        """Write what is queued and end the bar."""
        if self.speaks:
            self.flush()
            self.end_bar()
            self._write(None)
            with contextlib.suppress(OSError):  # said
                self._file.close()
            for board in self._boards:
                board.close()
