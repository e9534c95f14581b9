"""Profiles some steps of each phase, as they train.

runs/NAME/profile/PHASE.md            one page: parts of a step, kinds of work, longest operations
                  PHASE.json.gz       the trace, for https://ui.perfetto.dev or chrome://tracing
"""

import os
from contextlib import AbstractContextManager, nullcontext

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from erw.errors import UserError
from erw.profile.table import page
from erw.profile.trace import PREFIX, breakdown, read_events
from erw.run import Run
from erw.types import Phase

WARMUP_STEPS = 3
"""Steps of a phase before those that are profiled: allocations, autotuning, compilation."""

_NOTHING = nullcontext()


class Profile:
    """Listens to ``--train.profile`` steps of each phase, from its fourth step on, or from the
    image ``--train.profile_at``; costs nothing outside them.

    ``--train.profiler torch`` writes a trace and a page, from the first rank. ``nsight`` writes nothing itself: every rank
    marks the same ranges, and every operation, with NVTX between cudaProfilerStart and cudaProfilerStop. The host waits for
    the device before the first and after the last of these steps. Raises `UserError` for ``nsight`` without a CUDA device.
    """

    def __init__(self, run: Run):
        train = run.config.train
        self.run, self.steps = run, train.profile
        self._nsight = train.profiler == "nsight"
        self._cuda = run.ranks.device.type == "cuda"
        if self.steps and self._nsight and not self._cuda:
            raise UserError("--train.profiler nsight needs a CUDA device; torch, the default, does without")
        self._listens = self.steps > 0 and (self._nsight or run.ranks.first)
        self._phase, self._seen, self._from, self._first = "", 0, 0, 0
        self._open: profile | torch.autograd.profiler.emit_nvtx | None = None

    def part(self, name: str) -> AbstractContextManager:
        """A range around one part of a step; nothing unless this step is profiled."""
        return _NOTHING if self._open is None else record_function(PREFIX + name)

    def step(self, phase: Phase) -> None:
        """The loop calls this before each step, and before a hand-over to the phase of that step."""
        if not self._listens:
            return
        if phase.name != self._phase:
            self.close()
            self._phase, self._seen, self._first = phase.name, 0, 0
        self._seen += 1
        if self._open is not None and self._seen >= self._first + self.steps:
            self.close()
        if not self._first and self._seen > WARMUP_STEPS and self.run.images >= self.run.config.train.profile_at:
            self._first = self._seen
            self._start()

    def close(self) -> None:
        """End a recording, if one is going on, and write what it found."""
        if self._open is None:
            return
        self._wait()
        recorded, self._open = self._open, None
        if self._nsight:
            recorded.__exit__(None, None, None)
            torch.cuda.profiler.stop()
            return
        with self.run.accounts.apart("profiling"):
            recorded.stop()
            self._write(recorded)

    def _start(self) -> None:
        self._from = self.run.images
        self._wait()
        if self._nsight:
            torch.cuda.profiler.start()
            self._open = torch.autograd.profiler.emit_nvtx()
            self._open.__enter__()
            return
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # it would announce each start and stop
        with self.run.accounts.apart("profiling"):
            recorder = profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * self._cuda)
            recorder.start()
        self._open = recorder

    def _write(self, recorded: profile) -> None:
        folder = self.run.folder / "profile"
        folder.mkdir(parents=True, exist_ok=True)
        trace, text = folder / f"{self._phase}.json.gz", folder / f"{self._phase}.md"
        recorded.export_chrome_trace(str(trace))
        config, ranks = self.run.config, self.run.ranks
        images = self.run.images - self._from
        found = breakdown(read_events(trace), images // config.train.batch)
        device = torch.cuda.get_device_name(ranks.device) if self._cuda else f"CPU, {torch.get_num_threads()} threads"
        facts = {
            "phase": f"{self._phase}, images {self._from:,} to {self.run.images:,} ({found.steps} steps)",
            "batch": f"{config.train.batch} on {ranks.count} ranks, {config.engine.accumulation} micro-batches a step",
            "engine": f"{config.engine.ds_config}, {config.engine.precision}, operations {config.engine.ops}",
            "device": f"{device}, torch {torch.__version__}",
        }
        text.write_text(page(found, facts, trace.name), encoding="utf-8")
        self.run.telemetry.say(f"profile of phase {self._phase}: {text}")

    def _wait(self) -> None:
        if self._cuda:
            torch.cuda.synchronize(self.run.ranks.device)
