"""The ladder: rows that differ in one thing, that train the same, a floor made of the step's own matmuls, honest ratios."""

from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch

from erw.bench import _build
from erw.bench._floor import Floor, gemms, parameters
from erw.bench._ladder import Plan, Row, Setup, ladder, references, sides, without_graph
from erw.bench._largest import search
from erw.bench._profile import breakdown, on_device
from erw.bench._rows import relate
from erw.bench._run import Job, Run
from erw.bench._scene import Scene
from erw.bench._sentry import falls
from erw.bench._timing import Deadline
from erw.bench._weights import draw_weights
from erw.bench.ours import Training
from erw.bench.reference import ReferenceSiT
from erw.bench.reference_step import ReferenceStep
from erw.objectives import Flow

CPU = torch.device("cpu")
SCENE = Scene("tiny", 4, feature_width=12)
NO_MEMORY = "out of memory"


def changed(row: Row, rows: dict[str, Row]) -> list[str]:
    before = asdict(rows[row.over].setup)
    return [name for name, value in asdict(row.setup).items() if value != before[name]]


@pytest.mark.parametrize("on_cuda", [True, False])
def test_each_row_changes_one_field_of_the_row_it_names(on_cuda):
    rungs = ladder(on_cuda, frozenset(), attention="auto")
    rows = {row.name: row for row in (*rungs, *sides(rungs))}
    assert len(rows) == len(rungs) + len(sides(rungs))
    assert [row.over for row in rungs] == [None, *(row.name for row in rungs[:-1])]
    fields = {row.name: changed(row, rows) for row in rows.values() if row.over}
    assert all(len(names) == 1 for names in fields.values())
    everything = {name for names in fields.values() for name in names}
    assert everything == asdict(rungs[0].setup).keys() - {"code", "precision"} - (
        set() if on_cuda else {"fused", "batched_modulation", "graph"}
    )


def test_rows_that_cannot_differ_are_left_out():
    names = [row.name for row in ladder(False, frozenset({"compile"}), attention="sdpa")]
    assert names == ["ours plain", "+ vectorised loss", "+ fused optimizer and EMA", "+ no host reads"]
    assert [row.name for row in references(False, compile=True, published=True)] == [
        "reference bf16 compiled", "reference bf16", "reference fp32", "published bf16"
    ]  # fmt: skip
    assert [row.name for row in references(True, compile=False, published=False)] == ["reference bf16", "reference fp16"]


def test_the_plan_puts_references_and_the_last_rung_first():
    plan = Plan(on_cuda=True, published=256)
    table, telling = plan.table(Scene("XL/2", 256)), plan.telling(Scene("XL/2", 256))
    assert [row.name for row in telling][-2:] == ["published fp16", "+ CUDA graph"]
    assert telling[0].name == table[0].name == "reference bf16 compiled"
    assert "published fp16" not in [row.name for row in plan.table(Scene("XL/2", 32))]
    assert len(plan.table(Scene("XL/2", 256, 1024))) == 5
    assert [row.setup.phase for row in replace(plan, phase="warmup").telling(SCENE)] == ["full"] * 3 + ["warmup"]
    assert all(row.setup.phase == "full" for row in replace(plan, phase="full").table(SCENE))
    assert [row.name for row in replace(plan, rows="final").table(SCENE)] == ["reference bf16 compiled", "+ CUDA graph"]


def test_a_graph_that_fails_once_is_not_tried_again_in_its_scene():
    plan = Plan(on_cuda=True)
    run = SimpleNamespace(plan=plan)
    waiting = [Job(SCENE, row) for row in plan.table(SCENE)]
    job = next(job for job in waiting if job.row.name == "+ CUDA graph")
    left = Run._next(run, job, "failed: RuntimeError: capture", [], waiting)
    assert not any(other.row.setup.graph for other in left)
    # Its own twin is the row below it; the sides keep theirs.
    assert Job(SCENE, without_graph(job.row)) not in left
    assert "final, selective recompute, no graph" in [other.row.name for other in left]
    assert Run._next(run, job, "not measured: out of time", [], waiting) == waiting


def losses_of(step, count: int = 2) -> list[tuple[float, float]]:
    inputs = still_inputs()
    found = [step(*inputs) for _ in range(count)]
    return [
        (float(losses.get("velocity", losses["loss"])), float(losses.get("align", losses.get("alignment")))) for losses in found
    ]


def still_inputs() -> tuple[torch.Tensor, ...]:
    """A batch whose posterior is a point: the reference draws from another stream."""
    moments, labels, features = SCENE.inputs(CPU)
    return torch.cat([moments.chunk(2, dim=1)[0]] + [torch.zeros_like(moments.chunk(2, dim=1)[0])], dim=1), labels, features


def reference(precision: str, compile: bool = False) -> ReferenceStep:
    """The reference step on the draws of ours."""
    training = Training(Setup(code="ours", precision="fp32"), SCENE, CPU)

    def losses(model, latents, labels, features):
        given = Flow().draw(training.module.phase, 0, latents, labels, training.index, SCENE.config.num_classes)
        training.index += SCENE.batch
        velocity, projected = model(given.x, given.t, y=given.y)
        align = -torch.nn.functional.cosine_similarity(projected[0], features, dim=-1).mean()
        return (velocity - given.target["velocity"]).square().mean(dim=(1, 2, 3)), align

    model = ReferenceSiT(SCENE.config, encoder_depth=SCENE.encoder_depth, feature_width=12, label_dropout=0.0)
    draw_weights(model)
    return ReferenceStep(model, device=CPU, precision=precision, losses=losses, compile=compile)


def cpu_rows(compile: bool) -> list[Row]:
    """Ours in the full phase, in fp32; the engine's row has a test of its own (tests/e2e/test_bench_engine.py)."""
    rungs = ladder(False, frozenset(), attention="sdpa", start="fp32")
    return [row for row in (*rungs, *sides(rungs)) if row.setup.compile == compile and row.setup.phase == "full"
            and not row.setup.engine]  # fmt: skip


def shared_losses(rows: list[Row]) -> None:
    expected = losses_of(reference("fp32"))
    assert expected[0] != expected[1]
    for row in rows:
        # A bf16 residual stream is rounded to eight bits at each block.
        tolerance = 1e-2 if row.setup.residual == "bfloat16" else 1e-5
        found = losses_of(_build.build(row.setup, SCENE, CPU, None))
        for one, other in zip(found, expected, strict=True):
            # A cosine's rounding is that of 1, however small it is.
            assert one == pytest.approx(other, rel=tolerance, abs=tolerance), row.name


def test_every_row_trains_the_same_from_the_same_weights():
    shared_losses(cpu_rows(compile=False))


@pytest.mark.slow
def test_every_compiled_row_trains_the_same_from_the_same_weights():
    shared_losses(cpu_rows(compile=True))
    for one, other in zip(losses_of(reference("fp32", compile=True)), losses_of(reference("fp32")), strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-5)


def test_bf16_rows_stay_near_the_bf16_reference():
    expected = losses_of(reference("bf16"))
    for row in ladder(False, frozenset({"compile"}), attention="sdpa"):
        for one, other in zip(losses_of(_build.build(row.setup, SCENE, CPU, None)), expected, strict=True):
            assert one == pytest.approx(other, rel=1e-2, abs=2e-3), row.name


def test_no_weight_begins_at_zero_and_names_decide():
    ours = Training(Setup(code="ours", precision="fp32"), SCENE, CPU).module
    theirs = ReferenceSiT(SCENE.config, encoder_depth=SCENE.encoder_depth, feature_width=12)
    draw_weights(theirs)
    assert all((p != 0).float().mean() > 0.99 for p in ours.parameters() if p.requires_grad)
    torch.testing.assert_close(ours.model.blocks[1].mlp.fc1.weight, theirs.blocks[1].mlp.fc1.weight, rtol=0, atol=0)
    torch.testing.assert_close(ours.heads.projectors[0][2].bias, theirs.projectors[0][2].bias, rtol=0, atol=0)


def test_the_warm_up_row_holds_its_own_blocks_only():
    module = Training(Setup(code="ours", precision="bf16", phase="warmup"), SCENE, CPU).module
    assert len(module.model.blocks) == 1 and module.model.final_layer is None
    assert Scene("XL/2", 1).training("warmup")[1].depth == 5
    assert Scene("XL/2", 1).flops_per_image("warmup") < 0.25 * Scene("XL/2", 1).flops_per_image()


@pytest.mark.parametrize("scene", [Scene("tiny", 4), Scene("XL/2", 256), Scene("B/2", 8, 1024)])
@pytest.mark.parametrize("phase", ["full", "warmup"])
def test_the_floor_s_matmuls_are_those_of_the_flop_count(scene, phase):
    config, depth = scene.config, scene.training(phase)[1].blocks or scene.config.depth
    attention = 3 * depth * 4 * config.tokens**2 * config.width * scene.batch
    not_needed = sum(2 * gemm.m * gemm.n * gemm.k for gemm in gemms(scene, phase) if gemm.first)
    total = sum(gemm.flops for gemm in gemms(scene, phase)) + attention + not_needed
    assert total == scene.flops_per_image(phase) * scene.batch


def test_the_floor_s_parameters_are_those_that_train():
    for phase in ("full", "warmup"):
        module = Training(Setup(code="ours", precision="fp32", phase=phase), SCENE, CPU).module
        assert parameters(SCENE, phase) == sum(p.numel() for p in module.parameters())
    scene = Scene("XL/2", 1)
    assert parameters(scene, "full") == pytest.approx(675e6 + 8e6, rel=0.01)


def test_the_floor_is_the_sum_of_its_parts():
    floor = Floor(SCENE, "full", CPU, 1.0, 2)
    total = floor.seconds("sdpa")
    found = floor.as_json()
    products = sum(gemm["count"] * sum(gemm["seconds"].values()) for gemm in found["gemms"])
    assert total == pytest.approx(products + found["attention_seconds"]["sdpa"] + found["optimizer"]["seconds"])
    assert found["optimizer"]["seconds"] == pytest.approx(38 * parameters(SCENE, "full") / 1e9)
    assert {tuple(gemm["seconds"]) for gemm in found["gemms"]} == {("forward", "weight"), ("forward", "data", "weight")}


def test_a_floor_keeps_what_was_faster_of_two_looks(monkeypatch):
    floor, found = Floor(SCENE, "full", CPU, 1.0, 2), []
    for seconds, look in ((3.0, lambda: None), (1.0, floor.again), (2.0, floor.again)):
        monkeypatch.setattr(Floor, "_interleaved", lambda self, parts, seconds=seconds: dict.fromkeys(parts, seconds))
        look()
        found.append(floor.seconds("sdpa") - floor.as_json()["optimizer"]["seconds"])
    assert found[1] == pytest.approx(found[0] / 3) and found[2] == found[1]


def test_a_profile_sees_where_a_cpu_s_time_goes():
    a = torch.randn(1000, 1000)
    found = breakdown(lambda: (a @ a).mul_(2), CPU, 1.0)
    assert found["share"]["GEMM"] > 0.5 and found["launches"] is None and found["share"]["idle"] is None


def test_ranges_that_a_program_names_are_no_kernels():
    cuda = torch.autograd.DeviceType.CUDA
    events = [
        SimpleNamespace(key="gemm", device_type=cuda, self_device_time_total=2e6, count=3, is_user_annotation=False),
        SimpleNamespace(key="Optimizer.step", device_type=cuda, self_device_time_total=9e6, count=1, is_user_annotation=True),
    ]
    assert on_device(events, torch.device("cuda")) == [("gemm", 2.0, 3)]


def row(name: str, kind: str, ms: float, to_anchor: float | None, code: str = "ours", precision: str = "bf16") -> dict:
    measured = {"status": "measured", "ms_per_step": {"median": ms}, "to_anchor": to_anchor}
    return {"name": name, "kind": kind, "setup": {"code": code, "precision": precision}} | measured


def test_ratios_between_rows_go_by_way_of_the_anchor():
    rows = [
        row("reference bf16 compiled", "reference", 100, 1.0, "reference"),
        row("reference bf16", "reference", 300, 0.5, "reference"),
        row("ours", "ladder", 999, 2.0),
        row("apart", "ladder", 30, None),
        {"name": "lost", "kind": "ladder", "status": NO_MEMORY},
    ]
    relate(scene := {"rows": rows})
    assert rows[2]["faster_than"] == {"reference bf16 compiled": 2.0, "reference bf16": 4.0}
    assert rows[3]["faster_than"] == {"reference bf16 compiled": 100 / 30, "reference bf16": 10.0}
    assert "faster_than" not in rows[4] and scene["reference_agrees"] is None


@pytest.mark.parametrize(("published", "agrees"), [(0.49, True), (0.4, False)])
def test_published_code_that_differs_is_the_only_measure(published, agrees):
    rows = [
        row("reference bf16", "reference", 1, 0.5, "reference"),
        row("published bf16", "reference", 1, published, "published"),
        row("ours", "ladder", 1, 1.0),
    ]
    relate(scene := {"rows": rows})
    assert scene["reference_agrees"] is agrees
    assert rows[2]["faster_than"].keys() == ({"reference bf16", "published bf16"} if agrees else {"published bf16"})


def record(to_anchor: float | None, status: str = "measured") -> dict:
    rows = [
        {"name": "anchor", "status": "measured", "to_anchor": 1.0},
        {"name": "+ last", "status": status, "to_anchor": to_anchor},
    ]
    return {"scenes": [{"model": "B/2", "tokens": 256, "batch": 8, "anchor": "anchor", "rows": rows}]}


def test_the_sentry_names_what_fell():
    assert falls(record(2.0), record(1.81), 0.1) == []
    assert falls(record(2.0), record(1.79), 0.1) == ["B/2, 256 tokens, batch 8: + last fell by 10% to 1.79x anchor, from 2.00x"]
    assert falls(record(2.0), record(1.79), 0.2) == []
    (line,) = falls(record(2.0), record(None, NO_MEMORY), 0.1)
    assert line.endswith("was 2.00x anchor and is now out of memory")
    assert falls(record(None, NO_MEMORY), record(1.0), 0.1) == []


@pytest.mark.parametrize(("start", "limit"), [(4, 100), (64, 100), (256, 100), (100, 3), (1, 1)])
def test_the_largest_batch_is_found_by_doubling_and_halving(start, limit):
    asked = []

    def peak_of(batch: int) -> int | str:
        asked.append(batch)
        return 1000 + 7 * batch if batch <= limit else NO_MEMORY

    found = search(peak_of, start, Deadline())
    assert found["finished"] and limit - limit // 16 <= found["batch"] <= limit
    assert found["bytes_per_image"] == (7 if sum(batch <= limit for batch in asked) > 1 else None)
    assert len(asked) == len(set(asked)) <= 14


def test_a_search_that_meets_something_else_says_that_it_is_not_finished():
    assert search(lambda batch: "failed: RuntimeError: x", 4, Deadline())["finished"] is False
    assert search(lambda batch: 5, 4, Deadline(0)) == {"batch": None, "bytes_per_image": None, "tried": {}, "finished": False}
    none = search(lambda batch: NO_MEMORY, 4, Deadline())
    assert none["batch"] is None and list(none["tried"]) == ["1", "2", "4"]
