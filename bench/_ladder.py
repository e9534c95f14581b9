"""The ladder as data: what can be switched in a training step, and rows of which each switches one thing."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from erw.bench._scene import PhaseName, Scene
from erw.bench.reference import Precision


@dataclass(frozen=True, kw_only=True)
class Setup:
    """One training step. Of the reference and the published code only the first three fields are looked at.

    precision           autocast's dtype; for ours that of the weights, under fp32 masters
    compile             torch.compile of the model; for ours of each block
    loss                alignment: a Python loop over samples, as published, or one expression
    fused               ops of `erw.ops.FUSED`; the rest is plain PyTorch
    attention           backend, or ``auto``: the fastest here (`erw.kernels.attention.choose`)
    batched_modulation  one modulation GEMM a step for all blocks; on a CPU it would cost more than it saves
    optimizer           torch: AdamW, clip_grad_norm_ and an EMA that loops over parameters; adamw_ema: `erw.optim.AdamWEMA`
    host_reads          losses and norm are read back every step, as published
    graph               forward and backward are one CUDA graph each
    engine              DeepSpeed at ZeRO-1 around it instead of a bare loop
    """

    code: Literal["ours", "reference", "published"]
    precision: Precision
    compile: bool = False
    loss: Literal["loop", "vectorised"] = "loop"
    fused: tuple[str, ...] = ()
    attention: str = "sdpa"
    batched_modulation: bool = False
    optimizer: Literal["torch", "adamw_ema"] = "torch"
    host_reads: bool = True
    graph: bool = False
    engine: bool = False
    recompute: Literal["none", "selective", "full"] = "none"
    residual: Literal["float32", "bfloat16"] = "float32"
    phase: PhaseName = "full"


@dataclass(frozen=True)
class Row:
    """A setup with its name in the table; ``over`` is the row of which it changes one field."""

    name: str
    kind: Literal["reference", "ladder", "side"]
    setup: Setup
    over: str | None = None


@dataclass(frozen=True)
class Change:
    """One field's new value."""

    name: str
    field: str
    value: Any
    cuda: bool = False  # needs a CUDA device


_KERNELS = (
    ("adaln_linear",),
    ("gated_residual_adaln", "gated_residual"),
    ("qk_norm_rope",),
    ("mlp",),
    ("velocity_mse", "cosine_alignment"),
)
CHANGES = (
    Change("vectorised loss", "loss", "vectorised"),
    *(
        Change(f"fused {' and '.join(names)}", "fused", sum(_KERNELS[: number + 1], ()), cuda=True)
        for number, names in enumerate(_KERNELS)
    ),
    Change("attention backend", "attention", "auto"),
    Change("batched modulation", "batched_modulation", True, cuda=True),
    Change("fused optimizer and EMA", "optimizer", "adamw_ema"),
    Change("no host reads", "host_reads", False),
    Change("compiled blocks", "compile", True),
    Change("CUDA graph", "graph", True, cuda=True),
)
SIDES = (
    Change("selective recompute", "recompute", "selective"),
    Change("full recompute", "recompute", "full"),
    Change("bf16 residual stream", "residual", "bfloat16"),
    Change("warm-up phase", "phase", "warmup"),
    Change("DeepSpeed engine", "engine", True),
)


def references(on_cuda: bool, *, compile: bool, published: bool) -> tuple[Row, ...]:
    """The published step in the dtypes of the device, the anchor first: bf16, compiled where ``compile``.

    ``published``: the published code too, in the dtype that it trains in.
    """
    other: Precision = "fp16" if on_cuda else "fp32"
    setups = [Setup(code="reference", precision="bf16", compile=True)] if compile else []
    setups += [Setup(code="reference", precision="bf16"), Setup(code="reference", precision=other)]
    if published:
        setups.append(Setup(code="published", precision="fp16" if on_cuda else "bf16"))
    return tuple(Row(f"{s.code} {s.precision}" + " compiled" * s.compile, "reference", s) for s in setups)


def ladder(on_cuda: bool, without: frozenset[str], *, attention: str, start: Precision = "bf16") -> tuple[Row, ...]:
    """Ours, from the plain loop on: each row is the one before it with one field changed, but for the fields ``without``.

    A change that is none, such as that to torch's own attention, is no row.
    """
    rows = [Row("ours plain", "ladder", Setup(code="ours", precision=start))]
    for change in CHANGES:
        if change.field not in without and (on_cuda or not change.cuda):
            value = attention if change.field == "attention" else change.value
            setup = replace(rows[-1].setup, **{change.field: value})
            if setup != rows[-1].setup:
                rows.append(Row(f"+ {change.name}", "ladder", setup, rows[-1].name))
    return tuple(rows)


def sides(rungs: tuple[Row, ...]) -> tuple[Row, ...]:
    """Rows that branch from the last of ``rungs``; the engine from the one below a CUDA graph too."""
    final = rungs[-1]
    found = [Row(f"final, {c.name}", "side", replace(final.setup, **{c.field: c.value}), final.name) for c in SIDES]
    if final.setup.graph:
        found.append(Row("no graph, DeepSpeed engine", "side", replace(rungs[-2].setup, engine=True), rungs[-2].name))
    return tuple(found)


def without_graph(row: Row) -> Row:
    """``row`` for where no graph can be captured."""
    return replace(row, name=f"{row.name}, no graph", setup=replace(row.setup, graph=False))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which rows a scene gets.

    without    fields of `Setup` that no row may change
    published  the published code joins at this batch; None: nowhere
    phase      full: no warm-up row; warmup: of ours the warm-up row alone
    rows       all; telling: references and the last rung; final: the anchor and the last rung
    tokens     scenes with other tokens get the telling rows alone
    """

    on_cuda: bool
    without: frozenset[str] = frozenset()
    attention: str = "sdpa"
    published: int | None = None
    phase: Literal["full", "warmup", "both"] = "both"
    rows: Literal["all", "telling", "final"] = "all"
    tokens: int | None = None

    def table(self, scene: Scene) -> tuple[Row, ...]:
        """Rows of ``scene`` as they stand in the table; the first is its anchor."""
        theirs = references(self.on_cuda, compile="compile" not in self.without, published=self.published == scene.batch)
        rungs = ladder(self.on_cuda, self.without, attention=self.attention)
        branches = [row for row in sides(rungs) if row.setup.phase == "full" or self.phase != "full"]
        final = rungs[-1]
        if self.phase == "warmup":
            rungs, branches = (), [final := next(row for row in branches if row.setup.phase == "warmup")]
        if self.rows == "final":
            return theirs[0], final
        if self.rows == "telling" or scene.tokens != self.tokens:
            return *theirs, final
        return *theirs, *rungs, *branches

    def telling(self, scene: Scene) -> tuple[Row, ...]:
        """What is measured first: the references, then the last rung."""
        rows = self.table(scene)
        ours = [row for row in rows if row.kind == "ladder"] or [row for row in rows if row.kind == "side"]
        return *(row for row in rows if row.kind == "reference"), ours[-1]
