"""A run's memory, time, traffic and cost on a number of GPUs, phase by phase."""

from dataclasses import dataclass, replace

import numpy as np

from erw.align import Erw
from erw.config import TrainConfig
from erw.engine.config import micro_batch, read_ds_config, stage_of
from erw.plan.costs import Costs, phases
from erw.plan.memory import Memory, Sharding, memory_of, sharding_of
from erw.plan.network import Network, Traffic, traffic_of
from erw.plan.rates import Rates
from erw.plan.trace import Trace, Tracer
from erw.teachers import teacher_bytes
from erw.types import Phase

_OPTIMIZER_BYTES = 44
"""Moved for an element: master, two moments, EMA read and written in fp32, gradient read three times, weight written."""
_HIDDEN = 0.9  # of the backward that the reduction of gradients can hide behind: an assumption

MATMULS, MEMORY_BOUND, REDUCTION, GATHERING, OPTIMIZER, MEASURED, TEACHER = (
    "matmuls and attention", "memory-bound operations", "reduction of gradients", "gathering of weights", "optimizer",
    "forward and backward", "teacher",
)  # fmt: skip


@dataclass(frozen=True)
class PhaseForecast:
    """One phase of a run on one setting. ``parts``: seconds of a step by what they go to, what is hidden left out."""

    phase: Phase
    images: int
    sharding: Sharding
    memory: Memory
    trace: Trace
    traffic: Traffic
    parts: dict[str, float]
    flops_per_image: float
    measured: str | None

    @property
    def seconds(self) -> float:
        """Of a step."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Forecast:
    """A run on ``network.gpus`` GPUs."""

    config: TrainConfig
    rates: Rates
    network: Network
    micro: int
    phases: tuple[PhaseForecast, ...]

    @property
    def main(self) -> PhaseForecast:
        """The phase that takes longest."""
        return max(self.phases, key=lambda p: p.seconds * p.images)

    @property
    def peak(self) -> float:
        """Bytes that the fullest phase needs."""
        return max(p.memory.peak for p in self.phases)

    @property
    def fits(self) -> bool | None:
        """Whether that is there, with a share left for CUDA's own and for gaps; None where the device's size is not known."""
        return None if self.rates.memory is None else self.peak <= 0.94 * self.rates.memory

    @property
    def seconds(self) -> float:
        """Of training, start to end."""
        return sum(p.seconds * p.images for p in self.phases) / self.config.train.batch

    @property
    def gpu_hours(self) -> float:
        """Of all GPUs."""
        return self.seconds * self.network.gpus / 3600

    @property
    def images_per_second(self) -> float:
        """In the main phase, over all GPUs."""
        return self.config.train.batch / self.main.seconds

    @property
    def mfu(self) -> float | None:
        """Share of the published peak in the main phase."""
        if self.rates.peak is None:
            return None
        return self.images_per_second * self.main.flops_per_image / self.network.gpus / self.rates.peak


def _with_batch(config: TrainConfig, batch: int) -> TrainConfig:
    """``config`` with another batch; an ERW warm-up as many images long as whole steps of it come nearest to."""
    method = config.method
    if isinstance(method, Erw) and method.warmup_images % batch:
        method = replace(method, warmup_images=max(1, round(method.warmup_images / batch)) * batch)
    return replace(config, method=method, train=replace(config.train, batch=batch))


def _online_bytes(config: TrainConfig) -> int:
    """Of the teachers that run beside the model; they stay to the end."""
    teacher = config.active_teacher
    if teacher.source == "cached":
        return 0
    return sum(teacher_bytes(name, config.model.grid, teacher) for name in teacher.names)


class Forecaster:
    """Forecasts of one run on any number of GPUs: the model is traced once for each phase."""

    def __init__(self, config: TrainConfig, rates: Rates):
        ops = config.engine.ops if config.engine.ops != "auto" else ("fused" if rates.gpu else "reference")
        self.config, self.rates = replace(config, engine=replace(config.engine, ops=ops)), rates
        self._tracers: dict[tuple[str, bool, bool], Tracer] = {}

    def at(self, network: Network, *, batch: int | None = None, ds_config: str | None = None) -> Forecast:
        """On ``network``, with another global batch or DeepSpeed file where given. Raises `UserError` where they do not fit."""
        config = self.config if batch is None else _with_batch(self.config, batch)
        config = replace(config, engine=replace(config.engine, ds_config=ds_config or config.engine.ds_config))
        config.check()
        micro = micro_batch(config.train.batch, config.engine.accumulation, network.gpus)
        found = [self._phase(config, phase, images, network, micro) for phase, images in phases(config)]
        return Forecast(config, self.rates, network, micro, tuple(found))

    def _phase(self, config: TrainConfig, phase: Phase, images: int, network: Network, micro: int) -> PhaseForecast:
        tracer = self._tracer(config, phase)
        trace = tracer.at(micro)
        sharding = sharding_of(config, tracer.parameters(), network.gpus, 3 if phase.depth is None else 2)
        costs, traffic = Costs(config, ranks=network.gpus), traffic_of(sharding, network)
        teacher = costs.teacher(phase)
        memory = replace(memory_of(sharding, trace), teacher=_online_bytes(config))
        flops = costs.per_image(phase) - teacher
        row = None
        if phase.depth is None:
            row = self.rates.step_like(flops, micro, config.engine.ops, config.engine.recompute)
        parts = self._parts(sharding, trace, traffic, micro, flops, row)
        if teacher:
            rate = self.rates.fp32 if config.teacher.precision == "fp32" else self.rates.flops
            parts[TEACHER] = sharding.accumulation * micro * teacher / rate
        measured = f"{row['name']} of {row['model']}, batch {row['batch']}" if row else None
        return PhaseForecast(phase, images, sharding, memory, trace, traffic, parts, flops + teacher, measured)

    def _tracer(self, config: TrainConfig, phase: Phase) -> Tracer:
        apart = stage_of(read_ds_config(config.engine.ds_config)) == 3 and phase.depth is None
        key = phase.name, phase.aligns, apart
        if key not in self._tracers:
            self._tracers[key] = Tracer(config, phase, self.rates.gpu)
        return self._tracers[key]

    def _parts(self, s: Sharding, trace: Trace, traffic: Traffic, micro: int, flops: float, row: dict | None) -> dict:
        rates, rounds = self.rates, s.accumulation
        count, moved, backward = trace.work.T
        flops_per_second = rates.fp32 if self.config.engine.precision == "fp32" else rates.flops
        each = np.maximum(np.maximum(count / flops_per_second, moved / rates.bandwidth), rates.launch)
        behind = float(each[backward > 0].sum())
        compute = {MATMULS: float(each[count > 0].sum()), MEMORY_BOUND: float(each[count == 0].sum())}
        optimizer = _OPTIMIZER_BYTES * s.owned / rates.bandwidth
        if row is not None:  # its step has an optimizer in it, of all its elements
            seconds = max(micro * flops / (row["tflops"] * 1e12) - _OPTIMIZER_BYTES * s.elements / rates.bandwidth, 0.0)
            behind *= seconds / sum(compute.values())
            compute = {MEASURED: seconds}
        parts = {name: seconds * rounds for name, seconds in compute.items()}
        total = sum(parts.values())
        last = traffic.reduce_seconds * min(1.0, s.bucket / s.elements) / (rounds if s.stage >= 2 else 1)
        cover = _HIDDEN * behind * (rounds if s.stage >= 2 else 1) if s.stage and s.buckets == 2 else 0.0
        reduction = max(last, traffic.reduce_seconds - cover) if cover else traffic.reduce_seconds
        gathering = max(0.0, traffic.gather_seconds - _HIDDEN * total) if s.stage == 3 else traffic.gather_seconds
        return parts | {REDUCTION: reduction, GATHERING: gathering, OPTIMIZER: optimizer}
