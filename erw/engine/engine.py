"""One phase's model, optimizer and ZeRO state behind five verbs: forward, backward, step, state, release.

An engine lives as long as its phase. ERW's warm-up gets one of its own, holding its own parameters only, never above
ZeRO-2 (a stage-3 engine cannot be released within a process, and a warm-up is small); the hand-over reads the fp32
masters, releases the engine and builds the next.
"""

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from erw.engine.config import EngineConfig, clips_on_device, deepspeed_dict
from erw.engine.heap import keep_freed_memory
from erw.engine.ranks import Ranks
from erw.engine.skips import SkipRow
from erw.optim import STATE_KEYS, WEIGHTS, AdamWEMA, OptimConfig, param_groups
from erw.step import TrainStep, public_name

# Of DeepSpeed's dynamic loss scaler.
_SCALER_STATE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


class Engine:
    """DeepSpeed around a `TrainStep`. Weights enter in fp32 and are the masters, unrounded, at every precision."""

    def __init__(self, step: TrainStep, config: EngineConfig, optim: OptimConfig, batch: int, ranks: Ranks,
                 top_stage: int = 3):  # fmt: skip
        import deepspeed

        from erw.engine.flat_step import step_flat
        from erw.engine.shards import shards_of
        from erw.engine.waits import order_streams

        if ranks.device.type == "cpu":
            keep_freed_memory()
        if config.compile == "blocks":
            step.compile_parts(ranks.device)
        ds_dict = deepspeed_dict(config, batch, ranks.count, optim, top_stage)
        self.stage: int = ds_dict["zero_optimization"]["stage"]
        self.clips = clips_on_device(config, ds_dict, optim)
        self.accumulation, self.optim, self.ranks = config.accumulation, optim, ranks
        masters = {name: p.detach().clone() for name, p in step.named_parameters()}
        self.optimizer = AdamWEMA(
            param_groups(step.parameters(), optim.weight_decay),
            lr=optim.lr,
            betas=optim.betas,
            eps=optim.eps,
            ema_decay=optim.ema_decay(batch),
            max_norm=optim.clip if self.clips else None,
            sharded=self.stage > 0 and ranks.count > 1,
            kernels=config.ops != "reference",
            compiled=config.compile == "blocks",
        )
        self._deepspeed, wrapped, _, _ = deepspeed.initialize(
            model=step, optimizer=self.optimizer, config=ds_dict, dist_init_required=False
        )
        if self.clips and self.stage:
            order_streams(wrapped)
            step_flat(wrapped, self.optimizer, ranks.count)
        self.shards = shards_of(self.stage, wrapped, self.optimizer)
        # DeepSpeed makes its fp32 masters from weights already rounded to bf16; give it the true ones.
        for name, parameter in self.parameters().items():
            self.shards.set(parameter, WEIGHTS, masters[name])
        self.optimizer.init_state(self.shards.owned())
        self.shards.link()
        self._row = SkipRow(self._steps())

    @property
    def step_module(self) -> TrainStep:
        """The wrapped module, with DeepSpeed's weights."""
        return self._deepspeed.module

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Parameters by their name within the `TrainStep`."""
        return dict(self._deepspeed.module.named_parameters())

    def __call__(self, *inputs: Any) -> dict[str, Tensor]:
        """Forward of one micro-batch: the losses of `TrainStep`."""
        return self._deepspeed(*inputs)

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients of one micro-batch (its share of the global batch's mean)."""
        self._deepspeed.backward(loss)

    def step(self, lr: float) -> None:
        """After each `backward`; the optimizer moves once the last micro-batch of a step has been seen."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self._deepspeed.step()

    def grad_norm(self) -> Tensor | float | None:
        """Global gradient norm of the last step before clipping."""
        return self.optimizer.grad_norm if self.clips else self._deepspeed.get_global_grad_norm()

    def loss_scale(self) -> float | None:
        """Factor on the fp16 loss, None at other precisions."""
        return self._deepspeed.optimizer.loss_scaler.cur_scale if self._deepspeed.fp16_enabled() else None

    def scaler_state(self) -> dict[str, float]:
        """What the dynamic loss scale must remember over a resume; empty at other precisions than fp16."""
        if self.loss_scale() is None:
            return {}
        scaler = self._deepspeed.optimizer.loss_scaler
        return {name: getattr(scaler, name) for name in _SCALER_STATE}

    def _steps(self) -> Tensor:
        return self.optimizer.state[self.shards.owned()[0]]["step"]

    def steps(self) -> int:
        """Optimizer steps taken in this phase. The host waits for the device."""
        return int(self._steps().item())

    def skipped(self, begun: int) -> Tensor:
        """How many of the ``begun`` steps of this phase were not taken, their gradients not being finite: 0-d fp32, on the
        optimizer's device; the host does not wait."""
        return begun - self._steps()

    def count_step(self, images: int) -> None:
        """A step has ended at image ``images``. The host does not wait."""
        self._row.note(self._steps(), images)

    def skipped_in_a_row(self) -> dict[str, Tensor]:
        """See `erw.engine.skips.SkipRow.found`: since the engine was made or `load` was called."""
        return self._row.found()

    def read(self, key: str, keep: bool = True, device: torch.device | str = "cpu",
             pinned: bool = False) -> dict[str, Tensor]:  # fmt: skip
        """Full fp32 tensors on ``device`` by public name; a collective. ``key``: weights, exp_avg, exp_avg_sq or ema.

        A rank that does not ``keep`` them takes part and gets an empty dict. Beside the result one tensor is in memory.
        ``pinned``: from a GPU into page-locked host memory, at the bus's full rate, one wait for all of them.
        """
        tensors = {}
        pinned = pinned and self.ranks.device.type == "cuda"
        for name, parameter in self.parameters().items():
            full = self.shards.get(parameter, key)
            if keep and pinned:
                place = torch.empty(full.shape, dtype=torch.float32, pin_memory=True)
                tensors[public_name(name)] = place.copy_(full, non_blocking=True)
            elif keep:
                tensors[public_name(name)] = full.to(device, torch.float32)
        if pinned:
            torch.cuda.current_stream(self.ranks.device).synchronize()
        return tensors

    def load(self, read: Callable[[str], dict[str, Tensor]], steps: int, scaler: dict[str, float]) -> None:
        """Take over full tensors, ``read(key)[public name]``, the step count and `scaler_state`. One key is in memory at a
        time."""
        self.shards.link()
        for key in (WEIGHTS, *STATE_KEYS):
            tensors = read(key)
            for name, parameter in self.parameters().items():
                self.shards.set(parameter, key, tensors[public_name(name)])
        for tensor in self.shards.owned():
            self.optimizer.state[tensor]["step"].fill_(steps)
        for name, value in scaler.items():
            setattr(self._deepspeed.optimizer.loss_scaler, name, value)
        self._row = SkipRow(self._steps())

    def release(self) -> None:
        """Free everything that this engine holds; it cannot be used afterwards."""
        self._deepspeed.destroy()
        self._deepspeed = self.shards = self.optimizer = self._row = None
        gc.collect()
        if self.ranks.device.type == "cuda":
            torch.cuda.empty_cache()
