"""What a run's host waits for: on a CPU counted from what the loop asks of its tensors, on a GPU from what CUDA says too.

    torchrun --nproc-per-node 2 tests/support/host_reads.py JOBS.json

trains each of the settings in JOBS.json; every rank writes ``host_reads-RANK.json`` into the run's folder.

On a CPU nothing ever waits, so the twin counts what would wait if the tensors lay on a GPU: a number read out of a tensor
(``item``, ``bool`` ...), ``cpu``, ``numpy``, ``tolist``, an operation whose output's size depends on its values, and a
synchronisation of the device that DeepSpeed asks for. A step lasts from its first batch until it has been counted;
evaluations, checkpoints and hand-overs lie between steps.
"""

import json
import os
import sys
import traceback
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import erw  # noqa: F401
import train_ds
from erw.config import config_from_dict
from erw.kernels._adamw import run_plain

_READS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_consecutive", "equal", "is_nonzero"}
_INDEXING = {"index", "index_put", "index_put_"}
_HERE = Path(__file__).name


def _asker() -> str:
    """File and function, outside torch, that asked."""
    for frame in reversed(traceback.extract_stack()):
        if "/torch/" not in frame.filename and not frame.filename.endswith(_HERE):
            return f"{Path(frame.filename).name}:{frame.name}"
    return "?"


class _Reads(TorchDispatchMode):
    def __init__(self, note):
        super().__init__()
        self.note = note

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name in _INDEXING and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in _READS or by_mask:
            self.note(name)
        return func(*args, **(kwargs or {}))


class Counted:
    """``steps``: for each step its phase and a Counter of what was read and by which function."""

    def __init__(self):
        self.steps: list[tuple[str, Counter]] = []
        self.fresh = True  # an engine's first step may set up what later ones use
        self._now: Counter | None = None
        self._mode = None

    def note(self, what: str) -> None:
        """Count one read, if a step is going on."""
        if self._now is not None:
            self._now[f"{what} {_asker()}"] += 1

    def begin(self) -> None:
        """A step's first batch is about to be fetched; later ones change nothing."""
        if self._now is None:
            self._now = Counter()
            self._mode = _Reads(self.note)
            self._mode.__enter__()
            if torch.cuda.is_available() and not self.fresh:
                torch.cuda.set_sync_debug_mode("error")

    def end(self, phase: str) -> None:
        """The step has been counted."""
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("default")
        self._mode.__exit__(None, None, None)
        self.steps.append((phase, self._now))
        self._now, self.fresh = None, False


@contextmanager
def counting():
    """Count what `train_ds.train` reads inside, step by step. On a GPU a synchronising call of torch raises, too."""
    from deepspeed.accelerator import get_accelerator

    counted = Counted()
    stream, run, build = train_ds.stream, train_ds.Run, train_ds.build_engine

    def batches(*args, **kwargs):
        given = stream(*args, **kwargs)
        while True:
            counted.begin()
            yield next(given)

    def advance(self, phase, *args):
        whole(self, phase, *args)
        counted.end(phase.name)

    def build_engine(*args):
        counted.fresh = True
        return build(*args)

    def noting(function, what):
        def wrapped(*args, **kwargs):
            counted.note(what)
            return function(*args, **kwargs)

        return wrapped

    whole = run.advance
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_ds, "stream", batches)
        patch.setattr(train_ds, "build_engine", build_engine)
        patch.setattr(run, "advance", advance)
        # The optimizer of CPUs may read, the formulas that a GPU runs may not.
        patch.setattr(sys.modules["erw.kernels.adamw_ema"], "run_twin", run_plain)
        for name in ("cpu", "numpy", "tolist"):
            patch.setattr(torch.Tensor, name, noting(getattr(torch.Tensor, name), name))
        patch.setattr(torch.cuda, "synchronize", noting(torch.cuda.synchronize, "synchronize"))
        patch.setattr(type(get_accelerator()), "synchronize", noting(type(get_accelerator()).synchronize, "synchronize"))
        yield counted


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        jobs = [config_from_dict(job) for job in json.load(file)]
    for job in jobs:
        train_ds.start_ranks()
        with counting() as found:
            train_ds.train(job)
        name = f"host_reads-{os.environ['RANK']}.json"
        with open(os.path.join(job.train.out, name), "w", encoding="utf-8") as file:
            json.dump(found.steps, file)
    train_ds.stop_ranks()
