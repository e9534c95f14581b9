"""The loop reads nothing back to the host between reports under ZeRO-1 and 2; what other settings read is listed."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from states import difference, state_at
from tiny import BATCH, tiny

pytestmark = [pytest.mark.slow, pytest.mark.dist]

STEPS = 6
NOBODY = {"log_every": 10**9, "save_every": 0}
DECAY = {"optim": {"weight_decay": 0.1}}
# Method, stage, precision and what else is set, for runs whose every step must read nothing.
QUIET = {
    f"{name}-{stage}-{precision}": (name, stage, precision, {})
    for name in ("sit", "repa", "erw")
    for stage in ("zero1", "zero2")
    for precision in ("bf16", "fp32")
}
QUIET |= {
    "dit-repa-zero1-bf16": ("dit-repa", "zero1", "bf16", {}),
    "accumulated": ("erw", "zero1", "bf16", {"engine": {"accumulation": 2}}),
    "zero0": ("erw", "zero0", "fp32", {}),
    "zero0-decay": ("sit", "zero0", "fp32", DECAY),
    "zero0-autocast": ("sit", "zero0", "autocast", {}),
}
# The others, and what they read in each step: functions of DeepSpeed, and how often. docs/profiling.md has this as a table.
NORM, OVERFLOW = "_local_scalar_dense utils.py:is_invalid_grad_norm", "_local_scalar_dense stage_1_and_2.py:has_overflow"
READING = {
    "zero3": (("sit", "zero3", "bf16", {}), {NORM: 1}),
    "decay-bf16": (("sit", "zero1", "bf16", DECAY), {NORM: 3, OVERFLOW: 1}),
    "decay-fp32": (("sit", "zero2", "fp32", DECAY), {NORM: 3}),
    "autocast": (("sit", "zero1", "autocast", {}), {NORM: 2}),
    "fp16": (("sit", "zero2", "fp16", {}), {NORM: 2, OVERFLOW: 1}),
}
OFFLOAD = ("sit", "zero2_offload", "bf16", {})


def job(case, out, **train):
    name, stage, precision, more = case
    engine = {"ds_config": stage, "precision": precision, **more.get("engine", {})}
    rest = {section: fields for section, fields in more.items() if section != "engine"}
    return tiny(name, out, images=STEPS * BATCH, engine=engine, train={**NOBODY, **train}, **rest)


@pytest.fixture(scope="module")
def runs(run_jobs, tmp_path_factory):
    """Every case on two ranks, counted."""
    folder = tmp_path_factory.mktemp("reads")
    cases = QUIET | {name: case for name, (case, _) in READING.items()} | {"offload": OFFLOAD}
    jobs = [job(case, folder / name) for name, case in cases.items()]
    jobs.append(job(QUIET["sit-zero1-bf16"], folder / "reporting", log_every=2 * BATCH))
    run_jobs(jobs, program="tests/support/host_reads.py")
    return folder


def steps_of(run: Path) -> list[tuple[str, Counter]]:
    """(phase, what was read) of each step, both ranks' reads together."""
    ranks = [json.loads((run / f"host_reads-{rank}.json").read_text()) for rank in (0, 1)]
    assert [phase for phase, _ in ranks[0]] == [phase for phase, _ in ranks[1]] and len(ranks[0]) == STEPS
    return [(phase, Counter(a) + Counter(b)) for (phase, a), (_, b) in zip(*ranks, strict=True)]


@pytest.mark.parametrize("name", QUIET)
def test_no_step_between_reports_reads_anything(name, runs):
    steps = steps_of(runs / name)
    assert [read for _, read in steps] == [Counter()] * STEPS
    if QUIET[name][0] == "erw":
        assert [phase for phase, _ in steps] == ["warmup"] * 3 + ["full"] * 3


@pytest.mark.parametrize("name", READING)
def test_what_other_settings_read_is_what_the_docs_list(name, runs):
    if name == "fp16" and not torch.ops.mkldnn._is_mkldnn_fp16_supported():
        pytest.skip("this CPU has no fp16 matmul")
    expected = READING[name][1]
    # Under ZeRO-3 the first steps also exchange the order in which weights are fetched.
    for _, read in steps_of(runs / name)[3:]:
        assert read == Counter({what: 2 * count for what, count in expected.items()})
    docs = (Path(__file__).resolve().parents[2] / "docs" / "profiling.md").read_text()
    row = next(line for line in docs.splitlines() if line.startswith(f"| `{name}`"))
    assert f"| {sum(expected.values())} |" in row


def test_offload_reads_twice_for_each_weight_that_a_rank_owns(runs):
    read = steps_of(runs / "offload")[-1][1]
    assert sum(read.values()) > 80


def test_a_report_reads_the_one_before_it_and_nothing_else(runs):
    reads = [read for _, read in steps_of(runs / "reporting")]
    # Three reports, at every second step: the first has none before it. The first rank reads its figures, and every rank
    # whether it must act on rows of skipped steps.
    assert [sum(read.values()) for read in reads] == [0, 0, 0, 3, 0, 3]
    assert reads[3] == Counter({"tolist telemetry.py:read": 3})


@pytest.mark.gpu
@pytest.mark.parametrize("name", QUIET)
def test_cuda_sees_no_synchronising_call(name, run_jobs, tmp_path):
    """`host_reads.py` runs each step under ``torch.cuda.set_sync_debug_mode("error")`` where there is a GPU."""
    run_jobs([job(QUIET[name], tmp_path)], ranks=1, program="tests/support/host_reads.py")
    steps = json.loads((tmp_path / "host_reads-0.json").read_text())
    # An engine's first step may set up what later ones use.
    fresh = [0, 3] if QUIET[name][0] == "erw" else [0]
    assert [read for place, (_, read) in enumerate(steps) if place not in fresh] == [{}] * (STEPS - len(fresh))


@pytest.mark.parametrize("stage", ["zero0", "zero1", "zero2"])
def test_a_step_that_is_not_finite_is_skipped_on_every_rank_and_counted(stage, spoilt):
    run = spoilt / stage
    states = {step: state_at(run, step * BATCH) for step in (2, 3, 4)}
    assert difference(states[2], states[3]) == 0.0
    meta = [json.loads((run / "checkpoints" / f"{s * BATCH:012d}" / "meta.json").read_text())["steps"] for s in (2, 3, 4)]
    assert meta == [2, 2, 3]
    assert difference(states[3], states[4]) > 0
    assert all(t.isfinite().all() for tensors in states[4].values() for t in tensors.values())
    rows = [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["skipped"] for row in rows] == [0, 0, 1, 1, 1, 1]
    assert rows[2]["grad_norm"] == float("inf") and rows[3]["grad_norm"] < float("inf")


def test_the_count_of_skipped_steps_survives_a_resume(spoilt):
    rows = [json.loads(row) for row in (spoilt / "resumed" / "metrics.jsonl").read_text().splitlines()]
    assert [row["skipped"] for row in rows] == [1, 1]
    assert difference(state_at(spoilt / "resumed", 6 * BATCH), state_at(spoilt / "zero1", 6 * BATCH)) == 0.0


@pytest.fixture(scope="module")
def spoilt(run_jobs, tmp_path_factory):
    """Six steps at each stage, the third with a gradient that is not finite; one run resumed after its fourth step."""
    folder = tmp_path_factory.mktemp("spoilt")
    often = {"log_every": BATCH, "save_every": BATCH, "keep": 9}
    precision = {"zero0": "fp32", "zero1": "bf16", "zero2": "bf16"}
    jobs = [job(("repa", stage, precision[stage], {}), folder / stage, **often) for stage in precision]
    run_jobs(jobs, program="tests/support/nonfinite.py")
    origin = str(folder / "zero1" / "checkpoints" / f"{4 * BATCH:012d}")
    run_jobs([job(("repa", "zero1", "bf16", {}), folder / "resumed", **often | {"resume": origin})])
    return folder
