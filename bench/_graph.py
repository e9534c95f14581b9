"""Forward and backward of a `TrainStep` as two CUDA graphs."""

import torch
from torch import Tensor, nn

from erw.step import TrainStep
from erw.types import Targets


class Graphed:
    """Called as ``step`` is. Captured at the first call, whose shapes and phase later calls must keep; CUDA alone.

    Gradients still pass through autograd's accumulation, so hooks on parameters (ZeRO's) see each replay.
    """

    def __init__(self, step: TrainStep):
        self._tensors_only, self._replay = _TensorsOnly(step), None

    def __call__(self, x: Tensor, t: Tensor, y: Tensor, target: dict[str, Tensor] | None, teacher: Targets):
        """Losses as `TrainStep` gives them; they are overwritten by the next call."""
        given = (x, t, y, target or {}, *teacher.tokens)
        if self._replay is None:
            # Capture keeps its sample inputs as the graph's own and writes later ones over them.
            sample = torch.utils._pytree.tree_map(torch.clone, given)
            self._replay = torch.cuda.make_graphed_callables(self._tensors_only, sample)
        return self._replay(*given)


class _TensorsOnly(nn.Module):
    """``step`` with tensors, and dicts of them, as its only arguments: what a graph can be captured around."""

    def __init__(self, step: TrainStep):
        super().__init__()
        self.step = step

    def forward(self, x: Tensor, t: Tensor, y: Tensor, target: dict[str, Tensor], *tokens: Tensor) -> dict[str, Tensor]:
        # The class's own forward: the instance's may have been replaced by what calls us.
        return TrainStep.forward(self.step, x, t, y, target or None, Targets(tokens))
