"""Bytes of one GPU by kind, as DeepSpeed 0.19 holds them at each ZeRO stage.

State (weights, masters, moments, EMA) is exact: it follows from the parameters' sizes and the number of ranks. What comes and
goes within a step is the sum of what is alive at its two fullest moments, the backward and the optimizer's step.
"""

from dataclasses import dataclass

from erw.config import TrainConfig
from erw.engine.config import clips_on_device, deepspeed_dict
from erw.optim import OptimConfig
from erw.plan.trace import Trace

_FP32 = 4
# DeepSpeed's own defaults where a file does not say.
_BUCKET, _PREFETCH, _PERSISTENT, _REUSE = 5e8, 5e7, 1e5, 1e9


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one rank's device, unless in ``host``.

    weights      as the model computes with them; at ZeRO-3 its part and those that stay whole
    masters      fp32 weights beside them; 0 where the weights are fp32 and whole themselves
    moments      Adam's two
    ema          the average of the weights
    counters     of the optimizer
    buffers      ZeRO-3's for gradients, which are there at all times
    gradients    finished ones that are kept until the step
    buckets      what gradients are reduced in, and what ZeRO-3 gathers at once
    teacher      weights of an encoder that runs online; its forward is over before the model's begins
    activations  the most that is alive in forward and backward, inputs included
    backward     the most at once of the last three: they are not full at the same time
    step         what the optimizer's step needs beside the state: gradients of its shard, in fp32 where DeepSpeed steps, and
                 copies of them
    host         of all that, what offload keeps in the machine's memory
    """

    weights: float
    masters: float
    moments: float
    ema: float
    counters: float
    buffers: float = 0.0
    teacher: float = 0.0
    gradients: float
    buckets: float
    activations: float
    backward: float
    step: float
    host: float = 0.0

    @property
    def state(self) -> float:
        """What is there at all times."""
        return self.weights + self.masters + self.moments + self.ema + self.counters + self.buffers + self.teacher

    @property
    def peak(self) -> float:
        """The most at once, on the device."""
        return self.state - self.host + max(self.backward, self.step)


@dataclass(frozen=True)
class Sharding:
    """How a phase's parameters lie on ranks: elements of each group, and the knobs that decide what is held."""

    stage: int
    ranks: int
    groups: tuple[tuple[int, ...], ...]
    element: int
    accumulation: int
    bucket: int
    buckets: int
    reduce: int
    prefetch: float
    persistent: float
    reuse: float
    offload_optimizer: bool
    offload_param: bool
    recomputes: bool
    flat_step: bool

    @property
    def elements(self) -> int:
        """Parameters in all."""
        return sum(map(sum, self.groups))

    @property
    def padded(self) -> int:
        """Elements of the flat buffers, a multiple of twice the ranks for each group (ZeRO 1 and 2)."""
        return sum(-(-sum(group) // (2 * self.ranks)) * 2 * self.ranks for group in self.groups)

    @property
    def owned(self) -> int:
        """Elements that one rank's optimizer steps."""
        if self.stage == 0:
            return self.elements
        if self.stage < 3:
            return self.padded // self.ranks
        return sum(-(-size // self.ranks) for group in self.groups for size in group)

    @property
    def counters(self) -> int:
        """Step counters that the optimizer keeps: one a tensor that it sees."""
        return sum(map(len, self.groups)) if self.stage == 0 else len(self.groups)

    @property
    def whole(self) -> int:
        """Elements that stay whole on every rank at ZeRO-3, being small."""
        return sum(size for group in self.groups for size in group if size < self.persistent)

    def touched(self) -> int:
        """Elements of the parameters that lie in one rank's part, wholly or not: the most of any rank (ZeRO 1 and 2)."""
        most = 0
        for rank in range(self.ranks):
            total = 0
            for group in self.groups:
                part = -(-sum(group) // (2 * self.ranks)) * 2
                low, start = rank * part, 0
                for size in group:
                    total += size if start < low + part and start + size > low else 0
                    start += size
            most = max(most, total)
        return most


def sharding_of(config: TrainConfig, parameters: list[tuple[int, bool]], ranks: int, top_stage: int = 3) -> Sharding:
    """``parameters``: elements of each, and whether it is a matrix (weight decay makes a group of those)."""
    merged = deepspeed_dict(config.engine, config.train.batch, ranks, config.optim, top_stage)
    zero = merged["zero_optimization"]
    stage, optim = int(zero["stage"]), config.optim
    element = 2 if config.engine.precision in ("bf16", "fp16") else _FP32
    return Sharding(
        stage=stage,
        ranks=ranks,
        groups=_groups(parameters, optim),
        element=element,
        accumulation=config.engine.accumulation,
        bucket=int(zero.get("reduce_bucket_size", _BUCKET)),
        buckets=0 if not zero.get("contiguous_gradients", True) else 2 if zero.get("overlap_comm", stage == 3) else 1,
        reduce={"fp32": 4, "bf16": 2}.get(str(merged.get("communication_data_type")), element),
        prefetch=float(zero.get("stage3_prefetch_bucket_size", _PREFETCH)),
        persistent=float(zero.get("stage3_param_persistence_threshold", _PERSISTENT)),
        reuse=float(zero.get("stage3_max_reuse_distance", _REUSE)),
        offload_optimizer=bool(zero.get("offload_optimizer")),
        offload_param=bool(zero.get("offload_param")),
        recomputes=config.engine.recompute == "full",
        flat_step=0 < stage < 3 and clips_on_device(config.engine, merged, optim),
    )


def _groups(parameters: list[tuple[int, bool]], optim: OptimConfig) -> tuple[tuple[int, ...], ...]:
    if optim.weight_decay == 0.0:
        return (tuple(size for size, _ in parameters),)
    return tuple(tuple(size for size, matrix in parameters if matrix is kind) for kind in (True, False))


def memory_of(sharding: Sharding, trace: Trace) -> Memory:
    """Where the bytes of ``trace``'s micro-batch and of the state go."""
    build = (_whole, _flat, _flat, _partitioned)[sharding.stage]
    return build(sharding, trace)


def _state(s: Sharding) -> dict[str, float]:
    kept = {"masters": _FP32 * s.owned, "moments": 2 * _FP32 * s.owned, "ema": _FP32 * s.owned, "counters": _FP32 * s.counters}
    return kept | {"host": sum(kept.values()) if s.offload_optimizer else 0.0}


def _whole(s: Sharding, trace: Trace) -> Memory:
    """Stage 0: weights are the masters; gradients stay; buckets are copied together for the all-reduce."""
    copied = _FP32 * min(s.bucket, s.elements) if s.ranks > 1 else 0
    gradients = _FP32 * s.elements
    backward = trace.peak(_FP32) if s.accumulation == 1 else trace.peak() + gradients
    return Memory(
        weights=gradients, gradients=gradients, buckets=copied, activations=trace.peak(), backward=backward,
        step=gradients + copied, **_state(s) | {"masters": 0.0, "host": 0.0},
    )  # fmt: skip


def _flat(s: Sharding, trace: Trace) -> Memory:
    """Stages 1 and 2: gradients pass through buckets into a buffer of this rank's own; ZeRO-1 accumulates them whole."""
    if s.flat_step and s.ranks == 1:
        return _flat_alone(s, trace)
    state, kept = _state(s), s.element * s.touched()
    if s.offload_optimizer:
        kept = s.element * max(map(max, s.groups))
    accumulated = 0  # of the micro-batches before: ZeRO-2 keeps its own part of them
    if s.accumulation > 1:
        accumulated = s.element * s.elements if s.stage == 1 else kept
    buckets, copied = s.element * s.bucket * s.buckets, 0
    if s.ranks > 1:  # copied together, in the dtype of the reduction
        filled = min(s.bucket, s.elements)
        copied = s.element * filled + (s.reduce * filled if s.reduce != s.element else 0)
    # Buckets come with the first gradient; the copy when one is full or all are done; what is kept of it takes its place.
    done = trace.reduced
    begun, full = done > 0, done >= min(s.bucket, s.elements)
    again = (done >= 2 * s.bucket) | ((done >= s.elements) & (s.elements > s.bucket))
    extra = buckets * begun + max(copied, kept) * full + min(copied, kept) * again
    backward = float((trace.alive + extra).max()) + accumulated
    widened = _FP32 * s.owned if s.element != _FP32 and not s.offload_optimizer and not s.flat_step else 0
    return Memory(
        weights=s.element * s.padded, gradients=kept + accumulated, buckets=buckets + copied, activations=trace.peak(),
        backward=backward, step=kept + accumulated + s.element * s.owned + widened, **state,
    )  # fmt: skip


def _flat_alone(s: Sharding, trace: Trace) -> Memory:
    """They stay where the backward leaves them (`erw.engine.flat_step`), and are put together for the step."""
    gradients = s.element * s.elements
    backward = trace.peak(s.element) if s.accumulation == 1 else trace.peak() + gradients
    return Memory(
        weights=s.element * s.padded, gradients=gradients, buckets=0, activations=trace.peak(), backward=backward,
        step=gradients + s.element * s.owned, **_state(s),
    )  # fmt: skip


def _gathered(s: Sharding) -> float:
    """Elements gathered at once: all where the backward still holds what the forward gathered, and one prefetch twice."""
    apart = s.elements - s.whole
    return (min(apart, s.reuse / 2) if s.recomputes else apart) + min(s.prefetch, apart / 2)


def _partitioned(s: Sharding, trace: Trace) -> Memory:
    """Stage 3: parts of weights; whole ones are gathered ahead of use and kept where the backward wants them soon."""
    parts = s.element * s.owned
    gathered = s.element * _gathered(s) if s.ranks > 1 else 0
    state = _state(s)
    if s.offload_param:
        state["host"] += parts
    if s.offload_optimizer:
        state["host"] += parts  # the gradients'
    widened = _FP32 * s.owned if s.element != _FP32 and not s.offload_optimizer else 0
    return Memory(
        weights=parts + s.element * s.whole, buffers=parts + s.element * s.bucket, gradients=parts,
        buckets=s.element * s.bucket + gathered, activations=trace.peak(), backward=trace.peak() + gathered, step=widened,
        **state,
    )  # fmt: skip
