"""The differentiable part of a training step, as the one module that the engine wraps."""

from torch import Tensor, nn

from erw.align.base import Method
from erw.models.sit import SiT
from erw.ops import REFERENCE, OpSet
from erw.types import Phase

_PREFIXES = ("model.", "heads.")


class TrainStep(nn.Module):
    """Backbone and train-only heads in; losses out. ``phase`` is set by the loop before each step."""

    def __init__(self, model: SiT, heads: nn.Module, method: Method, phase: Phase, ops: OpSet = REFERENCE):
        super().__init__()
        self.model, self.heads = model, heads
        self.method, self.phase, self.ops = method, phase, ops

    def forward(self, x: Tensor, t: Tensor, y: Tensor, target: Tensor | None, features: Tensor | None):
        """x (B, C, S, S), t (B,), y (B,), velocity target or None, teacher features (B, N, Z) or None.

        Returns a dict of 0-d tensors, means over the B samples: ``loss`` (what is differentiated) and its parts
        ``velocity`` and ``align`` where the phase has them.
        """
        phase = self.phase
        output = self.model(x, t, y, taps=phase.taps if phase.aligns else ())
        losses = {}
        if phase.denoise:
            losses["velocity"] = self.ops.velocity_mse(output.velocity, target).mean()
        if phase.aligns:
            losses["align"] = self.method.loss(self.heads, output.taps, features, self.ops).mean()
        total = losses.get("velocity", 0.0) + phase.coefficient * losses.get("align", 0.0)
        return {"loss": total, **losses}


def public_name(name: str) -> str:
    """The name that public checkpoints use for a parameter or buffer of a `TrainStep`."""
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name
