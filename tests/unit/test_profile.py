"""The page of figures, from traces whose answer is known."""

import gzip
import json
from dataclasses import replace

import pytest
import torch

from erw.errors import UserError
from erw.options import parse
from erw.presets import preset
from erw.profile.kinds import kind_of
from erw.profile.table import page
from erw.profile.trace import PARTS, breakdown, read_events

MAIN, AUTOGRAD = 1, 2


def event(cat: str, name: str, start: float, end: float, tid: int = MAIN, **args) -> dict:
    return {"ph": "X", "cat": cat, "name": name, "ts": start, "dur": end - start, "tid": tid, "pid": 0, "args": args}


def part(name: str, start: float, end: float) -> dict:
    return event("user_annotation", f"erw::{name}", start, end)


def launch(at: float, number: int, tid: int = MAIN) -> dict:
    return event("cuda_runtime", "cudaLaunchKernel", at, at + 1, tid, correlation=number)


def kernel(name: str, start: float, end: float, number: int, tid: int = 7) -> dict:
    return event("kernel", name, start, end, tid, correlation=number)


GPU = [
    part("data wait", 0, 100),
    part("forward", 100, 200),
    part("backward", 200, 400),
    part("optimizer", 400, 450),
    # Both run after the host has left the part that launched them.
    launch(110, 1), kernel("sm90_xmma_gemm_bf16", 300, 700, 1),
    launch(120, 2), kernel("pytorch_flash::flash_fwd_kernel", 700, 800, 2),
    launch(210, 3, AUTOGRAD), kernel("vectorized_elementwise_kernel", 800, 1000, 3),
    # On a stream of its own: half of it behind the elementwise kernel.
    launch(220, 4, AUTOGRAD), kernel("ncclDevKernel_AllReduce", 900, 1100, 4, tid=8),
    launch(410, 5), kernel("_update_kernel", 1200, 2000, 5),
    event("user_annotation", "ProfilerStep#3", 0, 500),
    event("gpu_user_annotation", "erw::forward", 300, 800, tid=7),
]  # fmt: skip


def test_device_time_belongs_to_the_part_that_launched_it_and_to_one_kind_at_a_time():
    found = breakdown(GPU, steps=2)
    assert found.step == pytest.approx(1.0)  # 2,000 us in two steps
    assert found.parts == {
        "data wait": (pytest.approx(0.05), 0.0),
        "forward": (pytest.approx(0.05), pytest.approx(0.25)),
        "backward": (pytest.approx(0.1), pytest.approx(0.2)),
        "optimizer": (pytest.approx(0.025), pytest.approx(0.4)),
        "other": (pytest.approx(0.775), 0.0),
    }
    assert found.kinds == pytest.approx({"GEMM": 0.2, "attention": 0.05, "memory-bound": 0.5, "communication": 0.05})
    assert (found.hidden, found.idle) == (pytest.approx(0.05), pytest.approx(0.2))
    assert found.top[0] == ("_update_kernel", "memory-bound", pytest.approx(0.4), 0.5)


CPU = [
    part("forward", 0, 100),
    part("backward", 100, 200),
    event("cpu_op", "aten::linear", 10, 60),
    event("cpu_op", "aten::empty", 15, 20),  # within the GEMM
    event("cpu_op", "torch::autograd::AccumulateGrad", 110, 150),
    event("cpu_op", "aten::scaled_dot_product_attention", 120, 140),
    event("cpu_op", "gloo:all_reduce", 100, 190, tid=9),  # another thread's
    event("cpu_op", "aten::mul", 300, 400),  # after the last part
]


def test_on_a_cpu_operators_are_counted_without_those_that_they_called():
    found = breakdown(CPU, steps=1)
    assert found.step == pytest.approx(0.2)
    assert found.kinds == pytest.approx({"GEMM": 0.05, "attention": 0.02, "memory-bound": 0.02, "communication": 0.0})
    assert found.idle == pytest.approx(0.11) and found.hidden == 0.0
    assert found.parts["forward"] == (pytest.approx(0.1), None)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_NNT", "GEMM"),
        ("void cutlass::Kernel2<cutlass_80_wmma_tensorop>", "GEMM"),
        ("aten::addmm", "GEMM"),
        ("aten::mul", "memory-bound"),
        ("triton_poi_fused_add_mul_3", "memory-bound"),
        ("fmha_cutlassF_bf16_aligned_64x64_rf_sm80", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16", "attention"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("ncclDevKernel_ReduceScatter_Sum_bf16_RING_LL", "communication"),
        ("c10d::allreduce_", "communication"),
        ("Memcpy HtoD (Pinned -> Device)", "memory-bound"),
        ("_gated_residual_forward_kernel", "memory-bound"),
    ],
)
def test_kinds_are_told_by_names(name, kind):
    assert kind_of(name) == kind


def test_the_page_says_everything_once(tmp_path):
    trace = tmp_path / "full.json.gz"
    with gzip.open(trace, "wt") as file:
        json.dump({"traceEvents": [*GPU, {"ph": "M", "name": "process_name"}]}, file)
    text = page(breakdown(read_events(trace), 2), {"phase": "full"}, trace.name)
    for line in ("| forward | 0.050 | 0.250 | 25.0% |", "| GEMM | 0.200 | 20.0% |", "| idle | 0.200 | 20.0% |",
                 "Communication hidden behind other work: 0.050 ms a step.", "- phase: full"):  # fmt: skip
        assert text.count(line) == 1
    assert "full.json.gz" in text and len(text.splitlines()) < 60
    on_cpu = page(breakdown(CPU, 1), {}, "x.json.gz")
    assert "| part | ms | share of the step |" in on_cpu and "| forward | 0.100 | 50.0% |" in on_cpu


def test_a_trace_without_parts_is_refused():
    with pytest.raises(ValueError, match="no parts of a step"):
        breakdown([event("cpu_op", "aten::mul", 0, 1)], 1)


def test_the_loop_names_every_part():
    from pathlib import Path

    loop = (Path(__file__).resolve().parents[2] / "train_ds.py").read_text()
    assert [name for name in PARTS if f'with part("{name}"):' in loop] == list(PARTS) and loop.count("with part(") == len(PARTS)


def test_options():
    config, _ = parse(["digits-sit", "--profile", "4", "--train.profiler", "nsight"])
    assert (config.train.profile, config.train.profiler) == (4, "nsight")
    with pytest.raises(UserError, match="--train.profile must not be negative, not -1"):
        parse(["digits-sit", "--profile", "-1"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="is refused where there is no GPU")
def test_nsight_needs_a_gpu(tmp_path):
    from types import SimpleNamespace

    from erw.profile.recorder import Profile

    def run(**train):
        config, _ = parse(["digits-sit", *(f"--train.{k}={v}" for k, v in train.items())])
        return SimpleNamespace(config=config, ranks=SimpleNamespace(device=torch.device("cpu"), first=True))

    with pytest.raises(UserError, match="nsight needs a CUDA device"):
        Profile(run(profile=2, profiler="nsight"))
    off = Profile(run())
    off.step(SimpleNamespace(name="train"))
    assert off.part("forward") is off.part("backward")  # one context that does nothing


@pytest.mark.parametrize(("at", "first"), [(0, 4), (64, 5), (100, 8), (10_000, None)])
def test_the_image_at_which_profiling_begins(monkeypatch, at, first):
    """Two steps of 16 images: after three of warm-up, and not before that image; once a phase."""
    from types import SimpleNamespace

    from erw.profile.recorder import Profile
    from erw.types import Phase

    train = replace(preset("digits-sit").train, profile=2, profile_at=at)
    run = SimpleNamespace(config=SimpleNamespace(train=train), ranks=SimpleNamespace(first=True, device=torch.device("cpu")),
                          images=0)  # fmt: skip
    profile, recorded = Profile(run), []
    monkeypatch.setattr(profile, "_start", lambda: setattr(profile, "_open", object()))
    monkeypatch.setattr(profile, "close", lambda: setattr(profile, "_open", None))
    for step in range(1, 13):
        profile.step(Phase(name="train"))
        recorded += [step] * (profile._open is not None)
        run.images += 16
    assert recorded == ([] if first is None else [first, first + 1])
