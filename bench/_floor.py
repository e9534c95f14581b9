"""The least time that a step's own arithmetic takes on a device: its matmuls, its attention and its optimizer's traffic.

GEMMs (listed from the model's configuration) and attention are timed in the same run as the steps, in bf16, each alone and
over and over; the optimizer's bytes go at the measured bandwidth of a copy. What lies between them in a real step (norms,
gates, activations, losses, draws, launches) is not in it.
"""

from dataclasses import asdict, dataclass
from functools import cached_property

import torch
from torch import nn

from erw.align.projector import ProjectedMethod
from erw.bench._build import attention_problem
from erw.bench._modes import modes
from erw.bench._scene import PhaseName, Scene
from erw.bench._timing import interleave
from erw.kernels.attention import attention_backend
from erw.models.embed import TimestepEmbedder
from erw.models.sit import SiT

# A parameter: master, two moments and EMA read and written in fp32; the bf16 gradient read for its norm and again for the
# update; the bf16 weight written.
OPTIMIZER_BYTES = 4 * (4 + 4) + 2 * 2 + 2


@dataclass(frozen=True)
class Gemm:
    """``count`` Linears of one shape: (m, k) by (k, n) forward, (m, n) by (n, k) for the data gradient, (n, m) by (m, k)
    for the weight gradient. ``first``: its input needs no gradient."""

    name: str
    m: int
    n: int
    k: int
    count: int = 1
    first: bool = False

    @property
    def passes(self) -> tuple[str, ...]:
        """What a step runs of it."""
        return ("forward", "weight") if self.first else ("forward", "data", "weight")

    @property
    def flops(self) -> int:
        """Of all passes and all ``count``."""
        return 2 * self.m * self.n * self.k * self.count * len(self.passes)


def gemms(scene: Scene, phase: PhaseName) -> tuple[Gemm, ...]:
    """Every matmul of one step but attention's; the blocks' modulations as the one that they can be."""
    config, (method, at) = scene.config, scene.training(phase)
    width, samples, rows = config.width, scene.batch, scene.batch * config.tokens
    blocks, hidden, patch = at.blocks or config.depth, int(width * config.mlp_ratio), config.patch_size**2
    found = [
        Gemm("patch embedding", rows, width, patch * config.in_channels, first=True),
        Gemm("time embedding, in", samples, width, TimestepEmbedder.FREQUENCIES, first=True),
        Gemm("time embedding, out", samples, width, width),
        Gemm("modulation", samples, 6 * width * blocks, width),
        Gemm("qkv", rows, 3 * width, width, blocks),
        Gemm("attention's projection", rows, width, width, blocks),
        Gemm("mlp, in", rows, hidden, width, blocks),
        Gemm("mlp, out", rows, width, hidden, blocks),
    ]
    if at.depth is None:
        found.append(Gemm("final modulation", samples, 2 * width, width))
        found.append(Gemm("final layer", rows, patch * config.out_channels, width))
    if isinstance(method, ProjectedMethod):
        inner = method.projector_width
        found.append(Gemm("projector, in", rows, inner, width))
        found.append(Gemm("projector, middle", rows, inner, inner))
        found.append(Gemm("projector, out", rows, scene.feature_width, inner))
    return tuple(found)


def parameters(scene: Scene, phase: PhaseName) -> int:
    """Trainable parameters of ``phase``."""
    method, at = scene.training(phase)
    with torch.device("meta"):
        model, heads = SiT(scene.config), method.build_heads(scene.config, (scene.teacher,))
    if at.depth is not None:
        model.keep_span(at.first, at.depth)
    return sum(p.numel() for p in nn.ModuleList([model, heads]).parameters() if p.requires_grad)


class Floor:
    """The floor of ``scene`` in ``phase``; each part is measured when it is first asked for, in seconds of one step.

    copy_gb_per_s  bandwidth of a copy, bytes read plus written
    """

    def __init__(self, scene: Scene, phase: PhaseName, device: torch.device, copy_gb_per_s: float, rounds: int):
        self.scene, self.phase, self.device, self.rounds = scene, phase, device, rounds
        self._copy_gb_per_s = copy_gb_per_s
        self._attention: dict[str, float] = {}

    def seconds(self, attention: str) -> float:
        """With attention by the backend of that name."""
        return self._products + self._attended(attention) + self._optimizer["seconds"]

    def again(self) -> None:
        """Measure every part once more and keep what was faster: no floor is what a neighbour left of the machine."""
        other = Floor(self.scene, self.phase, self.device, self._copy_gb_per_s, self.rounds)
        for (_, mine), (_, theirs) in zip(self._gemms, other._gemms, strict=True):
            mine.update({name: min(mine[name], seconds) for name, seconds in theirs.items()})
        for backend, seconds in self._attention.items():
            self._attention[backend] = min(seconds, other._attended(backend))

    def as_json(self) -> dict:
        """What has been measured, part by part."""
        blocks = [asdict(gemm) | {"seconds": seconds} for gemm, seconds in self._gemms]
        total = {name: self.seconds(name) for name in self._attention}
        return {
            "phase": self.phase,
            "gemm_seconds": self._products,
            "gemms": blocks,
            "attention_seconds": self._attention,
            "optimizer": self._optimizer,
            "seconds": total,
        }

    @cached_property
    def _gemms(self) -> list[tuple[Gemm, dict[str, float]]]:
        """Each with the seconds of one product, by pass."""
        return [(gemm, self._timed(gemm)) for gemm in gemms(self.scene, self.phase)]

    @property
    def _products(self) -> float:
        return sum(gemm.count * sum(seconds.values()) for gemm, seconds in self._gemms)

    @cached_property
    def _optimizer(self) -> dict[str, float | int]:
        count = parameters(self.scene, self.phase)
        moved = count * OPTIMIZER_BYTES
        return {"parameters": count, "bytes": moved, "seconds": moved / self._copy_gb_per_s / 1e9}

    def _timed(self, gemm: Gemm) -> dict[str, float]:
        sizes = {"x": (gemm.m, gemm.k), "w": (gemm.n, gemm.k), "y": (gemm.m, gemm.n)}
        x, w, y = (torch.randn(size, device=self.device).to(torch.bfloat16) for size in sizes.values())
        dx, dw, out = torch.empty_like(x), torch.empty_like(w), torch.empty_like(y)
        lying = y.t().contiguous()
        functions = {
            "forward": lambda: torch.mm(x, w.t(), out=out),
            "data": lambda: torch.mm(y, w, out=dx),
            "weight": lambda: torch.mm(y.t(), x, out=dw),
            "transposed": lambda: torch.mm(lying, x, out=dw),
        }
        found = self._interleaved({name: functions[name] for name in (*gemm.passes, "transposed")})
        # As dy comes, or as if it lay transposed already, which is faster on some CPUs: the floor is what no step goes below.
        found["weight"] = min(found["weight"], found.pop("transposed"))
        return found

    def _attended(self, backend: str) -> float:
        """Forward and backward of all blocks."""
        if backend not in self._attention:
            run, (q, k, v) = attention_backend(backend), attention_problem(self.scene, self.device).draw()
            both = modes(lambda q, k, v: run(q, k, v), ("q", "k", "v"), {"q": q, "k": k, "v": v}, {})["both"]
            blocks = self.scene.training(self.phase)[1].blocks or self.scene.config.depth
            self._attention[backend] = blocks * self._interleaved({"both": both})["both"]
        return self._attention[backend]

    def _interleaved(self, functions: dict) -> dict[str, float]:
        calls = dict.fromkeys(functions, 20 if self.device.type == "cuda" else 1)
        timings = interleave(functions, device=self.device, rounds=self.rounds, warmup=2, calls=calls)
        return {name: timing.median for name, timing in timings.items()}
