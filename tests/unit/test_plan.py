"""Plans: the trace against another one of torch's, sharding's arithmetic, networks, rates, and what the command prints."""

import json
from dataclasses import replace

import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker

from erw.bench.plan import compare
from erw.cli import main
from erw.devices import DEVICES
from erw.errors import UserError
from erw.flops import train_flops
from erw.plan.error import NAME, read_error
from erw.plan.forecast import GATHERING, REDUCTION, Forecaster
from erw.plan.memory import Sharding, memory_of, sharding_of
from erw.plan.network import Network, traffic_of
from erw.plan.rates import RECORDS, rates_of
from erw.plan.report import bottleneck
from erw.plan.trace import Tracer, _inputs
from erw.presets import preset
from tiny import tiny

CPU_RATES = {"tflops": 1.0, "gb_per_s": 10.0}


def small(recompute="none", precision="bf16", **engine):
    """Two blocks of SiT-S/2 with REPA."""
    config = preset("in256-repa-s2")
    knobs = {"ds_config": "zero1", "recompute": recompute, "precision": precision, "ops": "reference", **engine}
    return replace(
        config,
        model=replace(config.model, depth=4),
        method=replace(config.method, depth=2),
        engine=replace(config.engine, **knobs),
    )


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_activations_agree_with_torchs_own_tracker(recompute, precision):
    """What a forward leaves, by torch.distributed's MemTracker on fake tensors: it knows nothing of ours."""
    config = small(recompute, precision)
    phase, micro = config.method.phase(0), 2
    tracer = Tracer(config, phase, gpu=False)
    ours, step = tracer.exactly(micro), tracer.step
    with tracer._mode:
        inputs = _inputs(config, phase, micro)
        tracker = MemTracker()
        tracker.track_external(step)
        with tracker:
            losses = step(*inputs)  # noqa: F841  (alive while counting)
            total = tracker.get_tracker_snapshot("current")[torch.device("cpu")]["Total"]
    held = sum(t.numel() * t.element_size() for t in (*step.parameters(), *step.buffers()))
    assert ours.saved == pytest.approx(total - held, rel=0.03)


def test_two_small_traces_say_what_any_other_is():
    tracer = Tracer(small("selective"), small().method.phase(0), gpu=True)
    extended, exact = tracer.at(7), tracer.exactly(7)
    assert extended.saved == pytest.approx(exact.saved, rel=1e-3) and extended.peak() == pytest.approx(exact.peak(), rel=1e-3)
    assert extended.work[:, 0].sum() == pytest.approx(exact.work[:, 0].sum(), rel=1e-6)


def test_flops_are_those_of_the_accounts():
    config = small()
    phase = config.method.phase(0)
    traced = Tracer(config, phase, gpu=False).exactly(2).work[:, 0].sum() / 2
    # The trace has flash attention's recomputation of scores, and no data gradient of the first layer.
    assert traced == pytest.approx(train_flops(config.model, config.method, phase, config.teacher_specs), rel=0.05)


def test_kernels_keep_less_and_recompute_keeps_least():
    phase = small().method.phase(0)
    saved = {}
    for name, engine in {"reference": {}, "fused": {"ops": "fused"}, "full": {"recompute": "full"}}.items():
        saved[name] = Tracer(small(**engine), phase, gpu=True).exactly(2).saved
    assert saved["full"] < 0.75 * saved["fused"] < 0.75**2 * saved["reference"]


def sharding(stage, ranks, groups=((10, 7), (3,)), **knobs) -> Sharding:
    rest = {"element": 2, "accumulation": 1, "bucket": 100, "buckets": 2, "reduce": 2, "prefetch": 10, "persistent": 5,
            "reuse": 1e9, "offload_optimizer": False, "offload_param": False, "recomputes": False,
            "flat_step": False}  # fmt: skip
    return Sharding(stage=stage, ranks=ranks, groups=groups, **rest | knobs)


def test_what_a_rank_owns():
    assert sharding(0, 4).owned == 20
    assert sharding(2, 4).owned == (24 + 8) // 4  # each group padded to a multiple of twice the ranks
    assert sharding(3, 4).owned == 3 + 2 + 1  # each parameter by itself
    assert sharding(3, 4).whole == 3
    # Rank 0 has elements 0..5 of the first group, rank 1 6..11: both meet the parameter of 10.
    assert sharding(2, 4, groups=((10, 7),)).touched() == 17


def test_a_network_of_machines_is_slower_than_one():
    s = sharding(2, 16, groups=((10_000_000,),), bucket=5_000_000)
    one, two = Network(8, 8, 450, 400), Network(16, 8, 450, 400)
    alone = traffic_of(replace(s, ranks=1), Network(1, 8, 450, 400))
    assert alone.reduced == alone.gathered == alone.reduce_seconds == alone.gather_seconds == 0
    near, far = traffic_of(replace(s, ranks=8), one), traffic_of(s, two)
    assert near.reduced == pytest.approx(2 * 7 / 8 * 2e7) and near.gathered == pytest.approx(7 / 8 * 2e7)
    assert far.reduce_seconds > 1.5 * near.reduce_seconds
    third = traffic_of(replace(s, stage=3, persistent=0), two)
    assert third.gathered == pytest.approx(2 * far.gathered) and third.reduced == pytest.approx(far.reduced / 2)
    twice = traffic_of(replace(s, accumulation=2), two)
    assert (
        twice.reduced == pytest.approx(2 * far.reduced)
        and traffic_of(replace(s, stage=1, accumulation=2), two).reduced == far.reduced
    )


def test_rates_come_from_a_record_of_the_same_device_or_a_data_sheet(tmp_path):
    sheet = rates_of("h200", tmp_path)
    assert sheet.source.startswith("data sheet") and sheet.flops == pytest.approx(0.65 * 989.5e12) and not sheet.steps
    with pytest.raises(UserError, match="no record of one"):
        rates_of("cpu", tmp_path)
    with pytest.raises(UserError, match="--gpu tpu is not known"):
        rates_of("tpu", tmp_path)
    given = rates_of("cpu", tmp_path, **CPU_RATES)
    assert (given.flops, given.bandwidth) == (1e12, 1e10)
    record = json.loads(next(RECORDS.glob("*_step_*.json")).read_text())
    record["environment"]["device"], record["device_type"] = "NVIDIA H200", "cuda"
    (tmp_path / "a_step_b.json").write_text(json.dumps(record))
    measured = rates_of("h200", tmp_path)
    assert "measured on NVIDIA H200" in measured.source and measured.steps and rates_of("h100", tmp_path).flops == sheet.flops
    row = measured.step_like(measured.steps[0]["flops_per_image"], 8, "reference", "none")
    assert row is not None and measured.step_like(1e3, 8, "reference", "none") is None


def test_a_measured_step_is_taken_as_it_is(tmp_path):
    """The forecast of a recorded setting is the record's own time."""
    rates = rates_of("cpu")
    row = rates.steps[0]
    config = preset("in256-repa-b2")
    config = replace(config, train=replace(config.train, batch=row["batch"]), engine=replace(config.engine, ds_config="zero1"))
    forecast = Forecaster(config, rates).at(Network(1, 1, 10, 10))
    assert forecast.main.seconds == pytest.approx(row["seconds"], rel=0.05) and forecast.main.measured


def test_the_limit_names_a_knob():
    config = small()
    rates = rates_of("h200", RECORDS)
    crowded = Forecaster(config, replace(rates, memory=1e8)).at(Network(8, 8, 450, 400))
    assert not crowded.fits and "do not fit" in bottleneck(crowded) and "--engine.recompute" in bottleneck(crowded)
    slow = Forecaster(config, rates).at(Network(64, 8, 450, 0.1), batch=64)
    assert slow.main.parts[REDUCTION] + slow.main.parts[GATHERING] > 0.5 * slow.main.seconds
    assert "--network" in bottleneck(slow)


def test_erw_plans_both_phases_and_other_batches_keep_whole_steps():
    config = tiny("erw", "x")
    forecast = Forecaster(config, rates_of("cpu", **CPU_RATES)).at(Network(1, 1, 10, 10))
    assert [p.phase.name for p in forecast.phases] == ["warmup", "full"]
    assert sum(p.images for p in forecast.phases) == config.train.images
    assert forecast.phases[0].sharding.elements < forecast.phases[1].sharding.elements
    assert Forecaster(config, rates_of("cpu", **CPU_RATES)).at(Network(1, 1, 10, 10), batch=32).phases[0].images == 64


def test_offload_moves_the_state_to_the_host():
    config = small(ds_config="zero2_offload")
    phase = config.method.phase(0)
    tracer = Tracer(config, phase, gpu=True)
    memory = memory_of(sharding_of(config, tracer.parameters(), 8), tracer.at(4))
    assert memory.host == memory.masters + memory.moments + memory.ema + memory.counters
    assert memory.peak < memory.state + memory.backward - 0.9 * memory.host


def test_the_command(capsys, tmp_path):
    picture = tmp_path / "plan.png"
    main(["plan", "digits-sit", "--gpus", "16", "--gpu", "a100", "--zero", "1", "--table", "--counts", "16,1024", "--plot",
          str(picture), "--price", "3", "--engine.ops", "reference"])  # fmt: skip
    said = capsys.readouterr().out
    for part in ("phase train: ZeRO-1", "peak", "MFU", "GPU-hours", "3 a GPU-hour", "400 W", "1,437 images",
                 "limit: ", "the model's own error", "| 1,024 | 128 |",
                 "more than one machine: modelled, never measured"):  # fmt: skip
        assert part in said, part
    assert picture.stat().st_size > 10_000


@pytest.mark.parametrize(("arguments", "line"), [
    (["--gpus", "7"], "is not divisible by 7 ranks"),
    (["--gpus", "0"], "--gpus must be above 0"),
    (["--gpu", "h100x"], "--gpu h100x is not known"),
    (["--counts", "1,x"], "--counts takes numbers"),
    (["--engine.nothing", "1"], "there is no option"),
])  # fmt: skip
def test_mistakes_are_one_line(capsys, arguments, line):
    with pytest.raises(SystemExit) as end:
        main(["plan", "digits-sit", *arguments])
    said = capsys.readouterr().err
    assert end.value.code == 2 and line in said and said.count("\n") == 1


def test_the_models_own_error_is_printed_or_said_to_be_missing(tmp_path):
    assert read_error(tmp_path) is None
    row = {"measured": {"peak": 100, "seconds": 1.0}, "forecast": {"peak": 103, "seconds": 0.8}}
    content = {"device_type": "cuda", "environment": {"device": "NVIDIA H200"}, "rows": [row]}
    (tmp_path / NAME).write_text(json.dumps(content))
    error = read_error(tmp_path)
    assert "own error on NVIDIA H200" in error.words("h200") and "memory +3.0% to +3.0%" in error.words("h200")
    assert error.words("b200").startswith("the model's own error: not measured on b200")
    (tmp_path / NAME).write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        read_error(tmp_path)


def test_every_device_has_a_sane_sheet():
    for device in DEVICES.values():
        assert 0 < device.fp32 < device.tflops and device.memory > 20 and device.link < device.bandwidth


def test_a_comparison_takes_the_fullest_rank():
    config = small()
    rank = {"saved": 1, "peak": 5, "exp_avg": 4, "exp_avg_sq": 4, "ema": 4, "seconds": 1.0, "inputs": 0}
    row = compare(Forecaster(config, rates_of("cpu")), replace(config, train=replace(config.train, batch=4)), 2,
                  [rank, rank | {"peak": 7}])  # fmt: skip
    assert row["measured"] == {"saved": 1, "peak": 7, "optimizer": 12, "ema": 4}  # no seconds of a CPU
