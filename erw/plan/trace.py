"""One micro-batch of the real model and its losses, forward and backward, on tensors without data.

No GPU and no memory is needed: operations run as fake tensors, which know shape, dtype and storage alone. What is noted at
each: the storages that are alive, the bytes that it moves and its FLOPs. Kernels (``--engine.ops fused``) are traced as what
they keep and return. Compiled blocks are traced as what they are compiled from, so their times are bounds from above.
"""

import weakref
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from erw.build import build_step
from erw.config import TrainConfig
from erw.kernels import _launch
from erw.step import TrainStep
from erw.types import Phase, Targets

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "autocast": torch.float32}
_aten = torch.ops.aten
# Backends that write their scores down; every other one keeps what flash attention keeps.
_PLAIN_ATTENTION = ("math", "matmul")


@dataclass(frozen=True)
class Trace:
    """What one micro-batch does. Bytes are rounded up to the allocator's ``grain`` a storage.

    saved     bytes alive when the forward ends: all that the backward needs, and the inputs
    alive     (events,) bytes alive after each operation, gradients of parameters apart
    reduced   (events,) elements of parameters whose gradient is done by then
    work      (operations, 3): FLOPs, bytes moved, 1 where the backward runs it
    """

    saved: float
    alive: np.ndarray
    reduced: np.ndarray
    work: np.ndarray

    def peak(self, per_gradient: float = 0.0) -> float:
        """The most bytes alive at once, where each element of a finished gradient keeps ``per_gradient`` bytes."""
        return float((self.alive + per_gradient * self.reduced).max())


class Tracer:
    """Traces ``phase`` of ``config`` at any micro-batch, for a CUDA device (``gpu``) or a CPU.

    The module is built once. Two traces at different sizes have the same operations, each affine in the number of images,
    so that `at` needs no third.
    """

    SIZES = 2, 4

    def __init__(self, config: TrainConfig, phase: Phase, gpu: bool):
        self.config, self.phase, self.grain = config, phase, 512 if gpu else 1
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        ops = config.engine.ops if config.engine.ops != "auto" else ("fused" if gpu else "reference")
        attention = config.engine.attention if config.engine.attention in _PLAIN_ATTENTION else "sdpa"
        engine = replace(config.engine, ops=ops, attention=attention, compile="none")
        self._kernels = ops == "fused"
        with torch.device("meta"):
            self.step = build_step(replace(config, engine=engine), phase)
        self.dtype = DTYPES[config.engine.precision]
        with self._mode:
            _without_data(self.step, self.dtype)
        self._known: dict[int, Trace] = {}

    def parameters(self) -> list[tuple[int, bool]]:
        """Elements of each trainable parameter, in the optimizer's order, and whether it is a matrix."""
        return [(p.numel(), p.dim() >= 2) for p in self.step.parameters() if p.requires_grad]

    def at(self, micro: int) -> Trace:
        """The trace of ``micro`` images: extended from two small ones where images do not look at each other."""
        if self.config.method.group > 1 or micro in self.SIZES:
            return self.exactly(micro)
        small, large = (self.exactly(size) for size in self.SIZES)
        share = (micro - self.SIZES[0]) / (self.SIZES[1] - self.SIZES[0])

        def extended(a, b):
            return a + (b - a) * share

        return Trace(
            float(extended(small.saved, large.saved)), extended(small.alive, large.alive), small.reduced,
            np.maximum(extended(small.work, large.work), 0),
        )  # fmt: skip

    def exactly(self, micro: int) -> Trace:
        """The trace of ``micro`` images, run."""
        if micro not in self._known:
            self._known[micro] = self._run(micro)
        return self._known[micro]

    def _run(self, micro: int) -> Trace:
        with self._mode, ExitStack() as stack:
            stack.enter_context(patch.object(F, "scaled_dot_product_attention", _flash))
            if self._kernels:  # their real operations are looked at, wherever the tensors claim to be
                stack.enter_context(patch.object(_launch, "INTERPRETED", True))
            inputs = _inputs(self.config, self.phase, micro)
            notes = _Notes(self.step, inputs, self.grain)
            stack.enter_context(notes)
            if self.config.engine.precision == "autocast":
                stack.enter_context(torch.autocast("cpu", dtype=torch.bfloat16))
            losses = self.step(*inputs)
            saved = notes.alive
            notes.backward = True
            with torch.autocast("cpu", enabled=False) if self.config.engine.precision == "autocast" else nullcontext():
                losses["loss"].backward()
        return notes.trace(saved)


class _Notes(TorchDispatchMode):
    """Storages made within, as long as anything holds them; the module's own are none of them."""

    def __init__(self, step: TrainStep, inputs: tuple, grain: int):
        super().__init__()
        self.grain, self.alive, self.reduced, self.backward = grain, 0, 0, False
        self._own = {tensor.untyped_storage()._cdata for tensor in (*step.parameters(), *step.buffers())}
        self._held: dict[int, weakref.ref] = {}
        self._events: list[tuple[int, int]] = []
        self._work: list[tuple[float, float, float]] = []
        self._hooks = [p.register_post_accumulate_grad_hook(self._finish) for p in step.parameters() if p.requires_grad]
        for tensor in tree_leaves(inputs):
            for part in tensor.tokens if isinstance(tensor, Targets) else (tensor,):
                if isinstance(part, Tensor):
                    self._note(part)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        returned = func(*args, **(kwargs or {}))
        outputs = [t for t in tree_leaves(returned) if isinstance(t, Tensor)]
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        sources = {t.untyped_storage()._cdata for t in given}
        made = [t for t in outputs if t.untyped_storage()._cdata not in sources]
        writes = func._schema.is_mutable
        if made or writes:
            moved = sum(t.numel() * t.element_size() for t in (*given, *made))
            flops = _flops(func, args, kwargs or {}, returned)
            self._work.append((flops, moved, float(self.backward)))
        for tensor in made:
            self._note(tensor)
        self._events.append((self.alive, self.reduced))
        return returned

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._own or key in self._held:
            return
        size = -(-storage.nbytes() // self.grain) * self.grain
        self.alive += size

        def gone(_, key=key, size=size):
            self.alive -= size
            del self._held[key]

        self._held[key] = weakref.ref(storage, gone)

    def _finish(self, parameter: Tensor) -> None:
        """The gradient is the engine's now."""
        parameter.grad = None
        self.reduced += parameter.numel()
        self._events.append((self.alive, self.reduced))

    def trace(self, saved: int) -> Trace:
        """What was noted; ends it."""
        for hook in self._hooks:
            hook.remove()
        events = np.array(self._events, dtype=np.float64)
        return Trace(float(saved), events[:, 0], events[:, 1], np.array(self._work, dtype=np.float64))


def _flops(func, args: tuple, kwargs: dict, returned) -> int:
    packet = func._overloadpacket
    if packet is _aten._scaled_dot_product_flash_attention_for_cpu:
        return sdpa_flop_count(*(t.shape for t in args[:3]))
    if packet is _aten._scaled_dot_product_flash_attention_for_cpu_backward:
        return sdpa_backward_flop_count(*(t.shape for t in args[:4]))
    count = flop_registry.get(packet)
    return count(*args, **kwargs, out_val=returned) if count else 0


def _flash(q: Tensor, k: Tensor, v: Tensor, *_, **__) -> Tensor:
    return _aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[0]


def _without_data(step: nn.Module, dtype: torch.dtype) -> None:
    """Weights of ``dtype`` in place of those on the meta device; tables keep theirs."""
    for module in step.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(torch.empty(parameter.shape, dtype=dtype), parameter.requires_grad)
        for name, table in module._buffers.items():
            module._buffers[name] = None if table is None else torch.empty(table.shape, dtype=table.dtype)


def _inputs(config: TrainConfig, phase: Phase, micro: int) -> tuple:
    """Arguments of a `TrainStep` for ``micro`` images, without data, in the dtypes that the loop gives."""
    model, objective = config.model, config.objective
    index = torch.empty(micro, dtype=torch.long)
    latents = torch.empty(micro, model.in_channels, model.input_size, model.input_size)
    drawn = objective.draw(phase, 0, latents, torch.empty_like(index), index, model.num_classes)
    if not phase.aligns:
        return drawn.x, drawn.t, drawn.y, drawn.target, None
    group = config.method.group
    rows = -(-micro // group) * group
    tokens = tuple(torch.empty(rows, spec.grid**2, spec.width) for spec in config.teacher_specs)
    return drawn.x, drawn.t, drawn.y, drawn.target, Targets(tokens)
