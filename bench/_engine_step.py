"""Our training step in the DeepSpeed engine that runs use: ZeRO-1 on one rank."""

import atexit
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor

from erw.bench._graph import Graphed
from erw.bench._ladder import Setup
from erw.bench._scene import Scene
from erw.bench.ours import Training
from erw.engine.config import EngineConfig
from erw.engine.engine import Engine
from erw.engine.ranks import Ranks, start_ranks, stop_ranks
from erw.optim import OptimConfig


class EngineStep:
    """As `OurStep`, of the same `Training`; `AdamWEMA` and nothing read back, as the engine has it."""

    def __init__(self, setup: Setup, scene: Scene, device: torch.device):
        self.training, self.optim = Training(setup, scene, device), OptimConfig()
        ops = "fused" if setup.fused else "reference"
        compile = "blocks" if setup.compile else "none"  # for the optimizer: the blocks were compiled with the module
        config = EngineConfig(ds_config="zero1", precision=setup.precision, ops=ops, compile=compile)
        self.engine = Engine(self.training.module, config, self.optim, scene.batch, _alone())
        if setup.graph:
            # After DeepSpeed has moved the weights into buffers of its own, whose addresses the graph holds.
            self.engine.step_module.forward = Graphed(self.engine.step_module)

    def __call__(self, moments: Tensor, labels: Tensor, features: Tensor) -> dict[str, Tensor]:
        """moments (B, 2C, S, S) fp32, labels (B,) int64, features (B, T, F), all on the device."""
        losses = self.engine(*self.training.inputs(moments, labels, features))
        self.engine.backward(losses["loss"])
        self.engine.step(self.optim.lr)
        return {name: value.detach() for name, value in losses.items()}

    def release(self) -> None:
        """Free what the engine holds."""
        self.engine.release()


@cache
def _alone() -> Ranks:
    """A process group of one, which DeepSpeed wants: joined once, left when the process ends."""
    if not dist.is_initialized():
        atexit.register(stop_ranks)
    return start_ranks()
