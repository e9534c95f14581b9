"""What a live engine holds and how fast it is, for comparison with a plan: run under torchrun by `erw.bench.plan`.

``python -m erw.bench._plan_live JOBS OUT``: JOBS is a JSON list of settings. OUT.RANK gets, for each, the bytes of the live
optimizer, the most bytes that a step allocates (CPU: by torch's profiler of the allocator; CUDA: max_memory_allocated), the
bytes that a forward leaves, and seconds a step.
"""

import gc
import json
import sys
import time
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from erw.build import build_step
from erw.config import TrainConfig, config_from_dict
from erw.engine.config import micro_batch
from erw.engine.engine import Engine
from erw.engine.ranks import Ranks, start_ranks, stop_ranks
from erw.optim import STATE_KEYS
from erw.types import Targets


def inputs_of(config: TrainConfig, phase, micro: int, device: torch.device) -> tuple:
    """Random arguments of a `TrainStep`: x, t, y, the objective's targets, the teachers' tokens."""
    index = torch.arange(micro, device=device)
    side = config.model.input_size
    latents = torch.randn(micro, config.model.in_channels, side, side, device=device)
    drawn = config.objective.draw(phase, 0, latents, index % config.model.num_classes, index, config.model.num_classes)
    tokens = tuple(torch.randn(micro, spec.grid**2, spec.width, device=device) for spec in config.teacher_specs)
    return drawn.x, drawn.t, drawn.y, drawn.target, Targets(tokens) if phase.aligns else None


class _Allocations:
    """The most bytes that were allocated at once within, above what there was before."""

    def __init__(self, device: torch.device):
        self.device, self.peak, self.left = device, 0, 0

    def __enter__(self):
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        else:
            self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
            self._profile.start()
        return self

    def __exit__(self, *_):
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            self.peak = torch.cuda.max_memory_allocated() - self._before
            self.left = torch.cuda.memory_allocated() - self._before
            return
        self._profile.stop()
        events = self._profile.profiler.kineto_results.events()
        now = 0
        for event in sorted((e for e in events if e.name() == "[memory]" and e.device_type() == DeviceType.CPU),
                            key=lambda e: e.start_ns()):  # fmt: skip
            now += event.nbytes()
            self.peak = max(self.peak, now)
        self.left = now


def measure(config: TrainConfig, ranks: Ranks, steps: int = 3) -> dict:
    """One settings' figures on this rank."""
    phase = config.method.phase(0)
    engine = Engine(build_step(config, phase), config.engine, config.optim, config.train.batch, ranks, 3)
    micro = micro_batch(config.train.batch, config.engine.accumulation, ranks.count)
    given = inputs_of(config, phase, micro, ranks.device)

    def step() -> None:
        for _ in range(config.engine.accumulation):
            engine.backward(engine(*given)["loss"])
            engine.step(1e-4)

    for _ in range(2):
        step()
    state = [engine.optimizer.state[tensor] for tensor in engine.shards.owned()]
    found = {key: sum(_bytes(entry[key]) for entry in state) for key in (*STATE_KEYS, "step")}
    found["owned"] = sum(map(_bytes, engine.shards.owned()))
    found["inputs"] = sum(_bytes(t) for t in (given[0], given[1], given[2], *(given[3] or {}).values(),
                                              *(given[4].tokens if given[4] else ())))  # fmt: skip
    found["steady"] = torch.cuda.memory_allocated() if ranks.device.type == "cuda" else None
    with _Allocations(ranks.device) as forward:
        losses = engine(*given)
    found["saved"] = forward.left
    engine.backward(losses["loss"])
    engine.step(1e-4)
    for _ in range(config.engine.accumulation - 1):
        engine.backward(engine(*given)["loss"])
        engine.step(1e-4)
    del losses
    with _Allocations(ranks.device) as whole:
        step()
    found["peak"] = whole.peak
    ranks.barrier()
    begun = time.perf_counter()
    for _ in range(steps):
        step()
    if ranks.device.type == "cuda":
        torch.cuda.synchronize()
    ranks.barrier()
    found["seconds"] = (time.perf_counter() - begun) / steps
    engine.release()
    return found


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def main(arguments: list[str]) -> None:
    """Measure every settings of the file."""
    jobs, out = json.loads(Path(arguments[0]).read_text(encoding="utf-8")), arguments[1]
    ranks = start_ranks()
    found = [measure(config_from_dict(job), ranks) for job in jobs]
    Path(f"{out}.{ranks.rank}").write_text(json.dumps(found), encoding="utf-8")
    stop_ranks()


if __name__ == "__main__":
    main(sys.argv[1:])
