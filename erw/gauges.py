"""What operators watch, beside the losses: speed lately, MFU, waits, memory, GPU-hours. Nothing here waits for a device."""

import resource
from contextlib import AbstractContextManager

import torch

from erw.devices import bf16_peak
from erw.engine.parts import WAIT
from erw.engine.ranks import Ranks, talk
from erw.environment import device_name
from erw.telemetry import Accounts


class Gauges:
    """Read at each report, on the first rank. Shares are of the training time since the last one."""

    def __init__(self, ranks: Ranks, accounts: Accounts):
        self.ranks, self.accounts = ranks, accounts
        cuda = ranks.device.type == "cuda"
        peak = bf16_peak(device_name(ranks.device)) if cuda else None
        self._peak = None if peak is None else peak * 1e12 * ranks.count
        self._talked = 0.0
        self._talks = not cuda and ranks.count > 1
        self._mark = self._now()

    def part(self, name: str, inner: AbstractContextManager) -> AbstractContextManager:
        """``inner``, its collectives timed on CPUs."""
        return _Talked(self, inner) if self._talks and name != WAIT else inner

    def read(self, waited: float) -> dict[str, float]:
        """Values for a report, by the names that metrics.jsonl has. What cannot be told is left out. ``waited``: seconds for
        data since the last one."""
        before, self._mark = self._mark, self._now()
        images, seconds, flops, talked = (now - then for now, then in zip(self._mark, before, strict=True))
        values: dict[str, float] = {}
        if seconds > 0:
            values["images_per_second_recent"] = images / seconds
            values["data_wait"] = min(1.0, waited / seconds)
            if self._peak is not None:
                values["mfu"] = flops / seconds / self._peak
            if self._talks:
                values["communication"] = min(1.0, talked / seconds)
        values["memory_gib"] = self._memory() / 2**30
        return values | {f"gpu_hours/{name}": e["device_seconds"] / 3600 for name, e in self.accounts.phases.items()}

    def _now(self) -> tuple[float, ...]:
        total = self.accounts.total
        return total("images"), total("seconds"), total("flops"), self._talked

    def _memory(self) -> int:
        """The most bytes so far: allocated by torch on a GPU, resident in a CPU's process."""
        if self.ranks.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.ranks.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class _Talked:
    """What evaluation and checkpoints say to each other is in no part of a step, and not in its time either."""

    def __init__(self, gauges: Gauges, inner: AbstractContextManager):
        self.gauges, self.inner = gauges, inner

    def __enter__(self) -> None:
        self.before = talk.seconds
        self.inner.__enter__()

    def __exit__(self, *error) -> None:
        self.inner.__exit__(*error)
        self.gauges._talked += talk.seconds - self.before
