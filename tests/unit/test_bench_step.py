"""The benchmark command: timing in turn, honest rows, a record that survives, and a dry run on any machine."""

import json
import math
import time

import pytest
import torch

from erw.bench import _contest, _measure
from erw.bench import step as step_bench
from erw.bench._contest import Contestant, Pairing, Scene, plan
from erw.bench._env import fingerprint
from erw.bench._peaks import bf16_peak
from erw.bench._record import Record, slug
from erw.bench._timing import Deadline, Timing, interleave, quantile
from erw.bench.ours import OurStep
from erw.errors import UserError
from erw.models.sit import sized

CPU = torch.device("cpu")
ON_GPU = torch.cuda.is_available()
TIME_UP, NO_MEMORY = "not measured: out of time", "out of memory"


def test_interleave_takes_turns_and_changes_who_goes_first():
    order = []
    timings = interleave(
        {name: (lambda name=name: order.append(name)) for name in "abc"}, device=CPU, rounds=3, warmup=1, calls={"b": 2}
    )
    assert "".join(order) == "abc" + "abbc" + "bbca" + "cabb"
    assert {name: len(timing.seconds) for name, timing in timings.items()} == {"a": 3, "b": 3, "c": 3}


def test_interleave_measures_seconds_of_one_call():
    timing = interleave({"nap": lambda: time.sleep(0.01)}, device=CPU, rounds=3, calls={"nap": 8})["nap"]
    assert 0.01 <= timing.median < 0.05


def test_interleave_stops_at_the_deadline_but_not_before_two_rounds():
    assert len(interleave({"a": int}, device=CPU, rounds=9, deadline=Deadline(0))["a"].seconds) == 2
    assert len(interleave({"a": int}, device=CPU, rounds=9, deadline=Deadline(60))["a"].seconds) == 9
    with pytest.raises(ValueError, match="flush"):
        interleave({"a": int}, device=CPU, rounds=1, flush=True, calls={"a": 2})


def test_quantiles_interpolate():
    assert [quantile((4.0, 1.0, 3.0, 2.0, 5.0), q) for q in (0.0, 0.2, 0.5, 0.8, 1.0)] == [1.0, 1.8, 3.0, 4.2, 5.0]
    timing = Timing((3.0, 1.0, 2.0))
    assert (timing.p20, timing.median, timing.p80) == pytest.approx((1.4, 2.0, 2.6))


def test_records_are_never_overwritten(tmp_path):
    environment = fingerprint(CPU) | {"device": "NVIDIA H200", "commit": "abc", "date": "2030-01-02T03:04:05+00:00"}
    paths = []
    for number in range(2):
        record = Record(tmp_path / "new", "Step", environment)
        record.write({"number": -1})
        record.write({"number": number})
        paths.append(record.path)
    assert [path.name for path in paths] == [
        "2030-01-02_nvidia-h200_step_abc.json", "2030-01-02_nvidia-h200_step_abc-2.json"
    ]  # fmt: skip
    assert [json.loads(path.read_text()) for path in paths] == [{"number": 0}, {"number": 1}]
    assert sorted(tmp_path.joinpath("new").iterdir()) == sorted(paths)
    assert slug("Intel(R) Xeon(R) @ 2.0") == "intel-r-xeon-r-2-0"
    with pytest.raises(UserError, match="--out"):
        Record(paths[0] / "below-a-file", "step", environment)


def test_fingerprint_is_json_and_says_where():
    found = json.loads(json.dumps(fingerprint(CPU, commit="given")))
    assert found["torch"] == torch.__version__.partition("+")[0] or found["torch"] == torch.__version__
    assert found["device"] == found["cpu"] and found["driver"] is None
    assert found["commit"] and found["cores"] >= 1


def test_flops_are_the_published_counts():
    found = [Scene(sized(name), 1).flops_per_image / 1e9 for name in ("XL/2", "L/2", "B/2")]
    assert found == pytest.approx([724.2, 496.2, 149.3], abs=0.1)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989.5),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A100 80GB PCIe", 312.0),
        ("NVIDIA H100 PCIe", None),
        ("Tesla T4", None),
    ],
)
def test_mfu_is_left_out_where_the_peak_is_unknown(name, peak):
    assert bf16_peak(name) == peak


def test_plan_puts_the_most_telling_first():
    found = plan(["XL/2", "B/2"], [256, 32], compile=True, published="fp16")
    eager, compiled = Contestant("ours", "bf16"), Contestant("ours", "bf16", compile=True)
    assert found[0] == Pairing("XL/2", 256, Contestant("reference", "fp16"), eager)
    assert found[2] == Pairing("XL/2", 256, Contestant("reference", "bf16", compile=True), compiled)
    assert [(p.model, p.batch) for p in found if p.rival.code == "published"] == [("XL/2", 256), ("B/2", 256)]
    assert len(found) == len(set(found)) == 14
    assert all(a.batch >= b.batch for a, b in zip(found, found[1:], strict=False))


def run(tmp_path, *arguments: str) -> dict:
    """A dry run's record. Exactly one file is written."""
    step_bench.main(["--dry-run", "--out", str(tmp_path), *arguments])
    (path,) = tmp_path.iterdir()
    return json.loads(path.read_text())


def rows_of(record: dict) -> dict[tuple[int, str, str], dict]:
    return {(p["batch"], p["rival"], row["contestant"]): row for p in record["pairings"] for row in p["rows"]}


def test_dry_run_measures_and_records(tmp_path, capsys):
    record = run(tmp_path)
    assert record["dry_run"] is True and record["finished"] is True
    assert record["measured_peaks"]["gemm_tflops"] > 0 and record["measured_peaks"]["copy_gb_per_s"] > 0
    rows = rows_of(record)
    assert {key[0] for key in rows} == {4, 2}
    half = "measured" if ON_GPU else "not measured: fp16 needs a GPU"
    assert {row["status"] for key, row in rows.items() if key[1] == "reference fp16"} == {half}
    flops = Scene(_contest.TINY, 4).flops_per_image
    for side in ("reference bf16", "ours bf16"):
        row = rows[4, "reference bf16", side]
        assert row["status"] == "measured" and row["interleaved"] and row["rounds"] == 2
        speed, milliseconds = row["images_per_s"], row["ms_per_step"]
        assert speed["median"] == pytest.approx(4000 / milliseconds["median"])
        assert speed["p20"] <= speed["median"] <= speed["p80"]
        assert row["tflops"] == pytest.approx(flops * speed["median"] / 1e12)
        assert (row["mfu"] is None) == (record["bf16_peak_tflops"] is None)
        assert (row["peak_memory_gib"] or 0) > 0 if ON_GPU else row["peak_memory_gib"] is None
        assert math.isfinite(row["last_step"]["loss"])
    (pairing,) = [p for p in record["pairings"] if p["rival"] == "reference bf16" and p["batch"] == 4]
    assert pairing["speedup"]["value"] > 0
    table = capsys.readouterr().out
    assert "dry run: the numbers say nothing about speed" in table
    assert ("MFU is left out" in table) == (record["bf16_peak_tflops"] is None)
    assert sum(line.startswith("tiny") for line in table.splitlines()) == len(rows)


def batches_of(record: dict, rival: str) -> list[int]:
    return [pairing["batch"] for pairing in record["pairings"] if pairing["rival"] == rival]


class Fake:
    """Stands in for `build`: steps that cost nothing, and fail as told."""

    def __init__(self, monkeypatch):
        self.fails: dict[tuple[str, int], Exception] = {}
        self.loss = 1.0
        monkeypatch.setattr(_measure, "build", self)
        self.built: list[tuple[str, int]] = []

    def __call__(self, contestant, scene, device, published, ops):
        self.built.append((contestant.code, scene.batch))
        if (contestant.code, scene.batch) in self.fails:
            raise self.fails[contestant.code, scene.batch]
        return lambda *inputs: {"loss": self.loss}


@pytest.fixture
def fake(monkeypatch):
    return Fake(monkeypatch)


def test_out_of_memory_is_a_result_and_half_the_batch_follows(fake, tmp_path, capsys):
    fake.fails["reference", 4] = torch.OutOfMemoryError("full")
    record = run(tmp_path)
    rows = rows_of(record)
    assert rows[4, "reference bf16", "reference bf16"] == {
        "contestant": "reference bf16", "precision": "bf16", "compile": False, "status": NO_MEMORY
    }  # fmt: skip
    alone = rows[4, "reference bf16", "ours bf16"]
    assert alone["status"] == "measured" and alone["interleaved"] is False
    assert rows[2, "reference bf16", "reference bf16"]["interleaved"] is True
    assert record["finished"] is True
    # The batch of 2 is in the plan already, so it is measured once.
    assert batches_of(record, "reference bf16") == [4, 2]
    assert NO_MEMORY in capsys.readouterr().out
    tmp_path.joinpath("x").mkdir()
    fake.fails["reference", 2] = torch.OutOfMemoryError("full")
    again = run(tmp_path / "x")
    assert batches_of(again, "reference bf16") == [4, 2, 1]
    assert rows_of(again)[1, "reference bf16", "ours bf16"]["interleaved"] is True


def test_memory_that_cublas_could_not_get_is_out_of_memory_too(fake, tmp_path):
    fake.fails["reference", 4] = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate")
    assert rows_of(run(tmp_path))[4, "reference bf16", "reference bf16"]["status"] == NO_MEMORY


def test_a_failure_is_recorded_and_the_rest_goes_on(fake, tmp_path, capsys):
    fake.fails["reference", 4] = RuntimeError("no compiler\nlong story")
    with pytest.raises(SystemExit) as exit_:
        run(tmp_path)
    assert exit_.value.code == 1
    (path,) = tmp_path.iterdir()
    rows = rows_of(json.loads(path.read_text()))
    assert rows[4, "reference bf16", "reference bf16"]["status"] == "failed: RuntimeError: no compiler"
    alone = rows[4, "reference bf16", "ours bf16"]
    assert alone["status"] == "measured" and alone["interleaved"] is False
    assert rows[2, "reference bf16", "ours bf16"]["status"] == "measured"


def test_a_step_whose_loss_is_not_finite_was_no_training(fake, tmp_path):
    fake.loss = float("nan")
    with pytest.raises(SystemExit):
        run(tmp_path)
    (path,) = tmp_path.iterdir()
    status = rows_of(json.loads(path.read_text()))[4, "reference bf16", "ours bf16"]["status"]
    assert status.startswith("failed: ArithmeticError: the loss is nan")


def test_what_the_time_did_not_reach_is_listed(fake, tmp_path, capsys):
    record = run(tmp_path, "--minutes", "0", "--compile")
    rows = rows_of(record)
    assert fake.built == []
    assert {row["status"] for key, row in rows.items() if "fp16" not in key[1]} == {TIME_UP}
    assert record["finished"] is True
    assert rows[2, "reference bf16 compiled", "ours bf16 compiled"]["status"] == TIME_UP
    assert capsys.readouterr().out.count(TIME_UP) == sum(row["status"] == TIME_UP for row in rows.values())


def test_a_killed_run_leaves_what_it_measured(fake, tmp_path):
    fake.fails["ours", 2] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    (path,) = tmp_path.iterdir()
    record = json.loads(path.read_text())
    assert record["finished"] is False
    assert rows_of(record)[4, "reference bf16", "ours bf16"]["status"] == "measured"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        pytest.param([], "--dry-run", marks=pytest.mark.skipif(ON_GPU, reason="only without a GPU")),
        (["--dry-run", "--reference-repo", "no/such/folder"], "--reference-repo"),
        (["--dry-run", "--engine.ops", "fastest"], "--engine.ops"),
    ],
)
def test_wrong_options_end_in_one_line(arguments, named, capsys, tmp_path):
    with pytest.raises(SystemExit) as exit_:
        step_bench.main([*arguments, "--out", str(tmp_path)])
    assert exit_.value.code == 2
    error = capsys.readouterr().err.strip()
    assert named in error and len(error.splitlines()) == 1


def test_our_bare_step_trains_and_keeps_masters():
    torch.manual_seed(0)
    scene = Scene(_contest.TINY, 4, feature_width=12)
    step = OurStep(scene.config, device=CPU, encoder_depth=1, feature_width=12, batch=4)
    for group in step.optimizer.param_groups:
        group["lr"] = 1e-3
    inputs, losses = scene.inputs(CPU), []
    for _ in range(12):
        step.index.copy_(torch.arange(4))  # The same noise, t and label drop each time.
        losses.append(step(*inputs)["loss"].item())
    assert losses[-1] < losses[0] - 0.1
    assert step.index.tolist() == [4, 5, 6, 7]
    for weight, master in zip(step.parameters, step.masters, strict=True):
        assert weight.dtype == torch.bfloat16 and master.dtype == torch.float32
        assert torch.equal(weight, master.to(torch.bfloat16))
        assert weight.grad is None
    changed = [not torch.equal(step.optimizer.state[m]["ema"], m) for m in step.masters]
    assert all(changed)
    assert step.module.model.pos_embed.dtype == torch.float32
