"""The differentiable part of a training step, as the one module that the engine wraps."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from erw.align.base import Method
from erw.align.projector import Projector
from erw.models.sit import SiT
from erw.objectives import Objective
from erw.ops import REFERENCE, OpSet
from erw.types import Phase, Targets

_PREFIXES = ("model.", "heads.")


class TrainStep(nn.Module):
    """Backbone and train-only heads in; losses out. ``phase`` is set by the loop before each step."""

    def __init__(self, model: SiT, heads: nn.Module, method: Method, objective: Objective, phase: Phase,
                 ops: OpSet = REFERENCE):  # fmt: skip
        super().__init__()
        self.model, self.heads = model, heads
        self.method, self.objective, self.phase, self.ops = method, objective, phase, ops

    def forward(self, x: Tensor, t: Tensor, y: Tensor, target: dict[str, Tensor] | None, teacher: Targets | None):
        """x (B, C, S, S), t (B,), y (B,), the objective's targets or None, the teachers' tokens or None.

        Returns a dict of 0-d tensors, means over the B samples: ``loss`` (what is differentiated) and its parts: the
        objective's (``velocity``, or ``mse`` and ``vlb``) and ``align``, where the phase has them.
        """
        phase = self.phase
        output = self.model(x, t, y, taps=phase.taps if phase.aligns else ())
        losses = {}
        if phase.denoise:
            parts = self.objective.losses(output.prediction, x, t, target, self.ops)
            losses |= {name: part.mean() for name, part in parts.items()}
        total = sum(losses.values())
        if phase.aligns:
            losses["align"] = self.method.loss(self.heads, output.taps, teacher, self.ops).mean()
            total = total + phase.coefficient * losses["align"]
        return {"loss": total, **losses}

    def compile_parts(self, device: torch.device) -> None:
        """torch.compile, in place, of what a step on ``device`` spends its time in: the blocks; on a CPU, where nothing else
        fuses them, projectors and alignment too."""
        self.model.compile_blocks(device)
        if device.type == "cpu":
            from erw.kernels._cpu_compiler import OPTIONS

            for head in self.heads.modules():
                if isinstance(head, Projector):
                    head.compile_on_cpu()
            alignment = torch.compile(self.ops.cosine_alignment, dynamic=False, options=OPTIONS)
            self.ops = replace(self.ops, cosine_alignment=alignment)


def public_name(name: str) -> str:
    """The name that public checkpoints use for a parameter or buffer of a `TrainStep`."""
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name
