"""The benchmark command: timing in turn, honest rows, a record that survives, and a dry run on any machine."""

import json
import math

import pytest
import torch

from erw.bench import _measure, _run
from erw.bench import step as step_bench
from erw.bench._ladder import Setup
from erw.bench._record import Record, slug
from erw.bench._scene import Scene
from erw.bench._timing import Deadline, Timing, interleave, quantile
from erw.bench.ours import OurStep
from erw.devices import bf16_peak
from erw.environment import fingerprint
from erw.errors import UserError

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


def test_interleave_measures_seconds_of_one_call(elapse):
    timing = interleave({"nap": lambda: elapse(0.25)}, device=CPU, rounds=3, calls={"nap": 8})["nap"]
    assert timing.seconds == (0.25,) * 3


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
    found = [Scene(name, 1).flops_per_image() / 1e9 for name in ("XL/2", "L/2", "B/2")]
    assert found == pytest.approx([724.2, 496.2, 149.3], abs=0.1)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989.5),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A100 80GB PCIe", 312.0),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA B200", 2250.0),
        ("NVIDIA GB200", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("Tesla T4", None),
    ],
)
def test_mfu_is_left_out_where_the_peak_is_unknown(name, peak):
    assert bf16_peak(name) == peak


def run(folder, *arguments: str) -> dict:
    """A dry run's record. Exactly one file and its picture are written."""
    step_bench.main(["--dry-run", "--out", str(folder), *arguments])
    return written(folder)


def written(folder) -> dict:
    (path,) = folder.glob("*.json")
    return json.loads(path.read_text())


def rows_of(record: dict) -> dict[tuple[int, str], dict]:
    return {(scene["batch"], row["name"]): row for scene in record["scenes"] for row in scene["rows"]}


def test_dry_run_measures_and_records(tmp_path, capsys):
    record = run(tmp_path, "--rows", "telling", "--phase", "full")
    assert record["dry_run"] is True and record["finished"] is True
    assert record["measured_peaks"]["gemm_tflops"] > 0 and record["measured_peaks"]["copy_gb_per_s"] > 0
    rows, last = rows_of(record), record["scenes"][0]["rows"][-1]["name"]
    other = "reference fp16" if ON_GPU else "reference fp32"
    assert rows.keys() == {(batch, name) for batch in (4, 2) for name in ("reference bf16", other, last)}
    flops = Scene("tiny", 4).flops_per_image()
    for name in ("reference bf16", other, last):
        row = rows[4, name]
        assert row["status"] == "measured" and row["interleaved"] and row["rounds"] == 2
        speed, milliseconds = row["images_per_s"], row["ms_per_step"]
        assert speed["median"] == pytest.approx(4000 / milliseconds["median"])
        assert speed["p20"] <= speed["median"] <= speed["p80"]
        assert row["tflops"] == pytest.approx(flops * speed["median"] / 1e12)
        assert (row["mfu"] is None) == (record["bf16_peak_tflops"] is None)
        assert (row["peak_memory_gib"] or 0) > 0 if ON_GPU else row["peak_memory_gib"] is None
        assert math.isfinite(row["last_step"]["loss"])
        share = row["profile"]["share"]
        assert share["GEMM"] > 0 and sum(part or 0 for part in share.values()) == pytest.approx(
            1, abs=1e-6 if not ON_GPU else 0.5
        )
        assert (row["profile"]["launches"] is None) != ON_GPU
        assert row["faster_than"]["reference bf16"] == pytest.approx(row["to_anchor"])
    (floor,) = record["scenes"][0]["floors"]
    backend = rows[4, last]["setup"]["attention"]  # the one that was the fastest here: a measurement chose it
    seconds = floor["gemm_seconds"] + floor["attention_seconds"][backend] + floor["optimizer"]["seconds"]
    assert floor["seconds"][backend] == pytest.approx(seconds)
    assert rows[4, last]["times_floor"] == pytest.approx(rows[4, last]["ms_per_step"]["median"] / 1e3 / seconds)
    table = capsys.readouterr().out
    assert "dry run: the numbers say nothing about speed" in table
    assert ("MFU is left out" in table) == (record["bf16_peak_tflops"] is None)
    assert all(table.count(f"\n{name}") == 2 for _, name in rows)
    (picture,) = tmp_path.glob("*.png")
    assert picture.stat().st_size > 10_000


class FakeFloor:
    """Stands in for `Floor`: takes no time."""

    def __init__(self, *_):
        pass

    def seconds(self, attention: str) -> float:
        return 1e-6

    def again(self) -> None:
        pass

    def as_json(self) -> dict:
        parts = {"attention_seconds": {"sdpa": 0.0}, "optimizer": {"seconds": 0.0}, "seconds": {"sdpa": 1e-6}}
        return {"phase": "full", "gemm_seconds": 1e-6, "gemms": []} | parts


class Fake:
    """Stands in for `build`: steps that cost nothing, and fail as told by (code, batch) or by a test of the setup."""

    def __init__(self, monkeypatch):
        self.fails: dict[tuple[str, int], Exception] = {}
        self.fails_where = lambda setup: None
        self.loss = 1.0
        self.built: list[tuple[str, int]] = []
        monkeypatch.setattr(_measure, "build", self)
        monkeypatch.setattr(_run, "Floor", FakeFloor)
        monkeypatch.setattr(_measure, "breakdown", lambda *_: {"share": None, "launches": None, "kernels": None})
        monkeypatch.setattr(_measure, "_free", lambda: None)
        monkeypatch.setattr(step_bench, "_draw", lambda *_: None)
        monkeypatch.setattr(step_bench, "measured_peaks", lambda *_, **__: dict.fromkeys(
            ("gemm_size", "gemm_tflops", "copy_mib", "copy_gb_per_s"), 1))  # fmt: skip

    def __call__(self, setup: Setup, scene: Scene, device, published):
        self.built.append((setup.code, scene.batch))
        error = self.fails.get((setup.code, scene.batch)) or self.fails_where(setup)
        if error:
            raise error
        return lambda *inputs: {"loss": self.loss}


@pytest.fixture
def fake(monkeypatch):
    return Fake(monkeypatch)


@pytest.fixture
def last(fake, tmp_path) -> str:
    """The name of the last rung here."""
    folder = tmp_path / "rungs"
    return [row["name"] for row in run(folder, "--rows", "final")["scenes"][0]["rows"]][-1]


def test_all_rows_are_measured_the_telling_ones_of_every_batch_first(fake, tmp_path, capsys):
    record = run(tmp_path, "--compile")
    steps = [line.split(": ")[:2] for line in capsys.readouterr().err.splitlines() if line.startswith("tiny")]
    assert steps[0] == ["tiny batch 4", "reference bf16 compiled"]
    # Three references and the last rung of each batch.
    assert [place for place, _ in steps[:9]] == ["tiny batch 4"] * 4 + ["tiny batch 2"] * 4 + ["tiny batch 4"]
    names = [row["name"] for row in record["scenes"][0]["rows"]]
    assert [name for _, name in steps[:4]] == [*names[:3], "+ CUDA graph" if ON_GPU else "+ compiled blocks"]
    assert names[3] == "ours plain" and len(names) == len(set(names))
    assert {row["status"] for row in rows_of(record).values()} == {"measured"}
    assert record["scenes"][0]["anchor"] == "reference bf16 compiled"


def test_the_anchor_is_built_once_a_scene(fake, tmp_path):
    record = run(tmp_path, "--no-compile")
    anchors = len(record["scenes"][0]["rows"])
    # Each row once; the anchors again when the second part of the plan comes back to their scene.
    assert len(fake.built) <= 2 * anchors + 2


def test_other_tokens_get_the_telling_rows(fake, tmp_path, last):
    record = run(tmp_path, "--tokens", "16,64")
    few, many = record["scenes"][2:], record["scenes"][:2]
    assert [scene["tokens"] for scene in record["scenes"]] == [16, 16, 64, 64]
    assert [row["name"] for row in few[0]["rows"]][-1] == last
    assert len(few[0]["rows"]) == 3 < len(many[0]["rows"])


def test_out_of_memory_is_a_result_and_half_the_batch_follows(fake, last, tmp_path, capsys):
    fake.fails["reference", 4] = torch.OutOfMemoryError("full")
    (tmp_path / "a").mkdir()
    record = run(tmp_path / "a", "--phase", "full")
    rows = rows_of(record)
    assert rows[4, "reference bf16"].keys() == {"name", "kind", "over", "setup", "status"}
    assert rows[4, "reference bf16"]["status"] == NO_MEMORY
    alone = rows[4, last]
    assert alone["status"] == "measured" and alone["interleaved"] is False and alone["to_anchor"] is None
    assert rows[2, last]["interleaved"] is True
    assert record["finished"] is True
    # The batch of 2 is in the plan already, so it is measured once.
    assert [scene["batch"] for scene in record["scenes"]] == [4, 2]
    assert len(rows) == sum(len(scene["rows"]) for scene in record["scenes"])
    assert NO_MEMORY in capsys.readouterr().out
    fake.fails["reference", 2] = torch.OutOfMemoryError("full")
    again = run(tmp_path / "x", "--rows", "telling")
    assert [scene["batch"] for scene in again["scenes"]] == [4, 2, 1]
    assert rows_of(again)[1, last]["interleaved"] is True


def test_a_row_that_does_not_fit_beside_the_anchor_is_measured_by_itself(fake, last, tmp_path):
    beside = []

    def no_room_for_two(setup: Setup) -> Exception | None:
        beside.append(setup.code)
        return torch.OutOfMemoryError("full") if beside[-2:] == ["reference", "ours"] and len(beside) < 4 else None

    fake.fails_where = no_room_for_two
    record = run(tmp_path / "x", "--rows", "final")
    row, anchor = rows_of(record)[4, last], rows_of(record)[4, "reference bf16"]
    assert row["interleaved"] is False
    assert row["to_anchor"] == pytest.approx(anchor["ms_per_step"]["median"] / row["ms_per_step"]["median"])
    assert beside[:3] == ["reference", "ours", "ours"]


def test_memory_that_cublas_could_not_get_is_out_of_memory_too(fake, tmp_path):
    fake.fails["reference", 4] = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate")
    assert rows_of(run(tmp_path, "--rows", "telling"))[4, "reference bf16"]["status"] == NO_MEMORY


def test_a_failure_is_recorded_and_the_rest_goes_on(fake, last, tmp_path, capsys):
    fake.fails["reference", 4] = RuntimeError("no compiler\nlong story")
    with pytest.raises(SystemExit) as exit_:
        run(tmp_path / "x", "--rows", "telling")
    assert exit_.value.code == 1
    rows = rows_of(written(tmp_path / "x"))
    assert rows[4, "reference bf16"]["status"] == "failed: RuntimeError: no compiler"
    assert rows[4, last]["status"] == "measured" and rows[4, last]["interleaved"] is False
    assert rows[2, last]["status"] == "measured"


def test_a_step_whose_loss_is_not_finite_was_no_training(fake, tmp_path):
    fake.loss = float("nan")
    with pytest.raises(SystemExit):
        run(tmp_path, "--rows", "telling")
    status = rows_of(written(tmp_path))[4, "reference bf16"]["status"]
    assert status.startswith("failed: ArithmeticError: the loss is nan")


def test_what_the_time_did_not_reach_is_listed(fake, tmp_path, capsys):
    record = run(tmp_path, "--minutes", "0", "--compile")
    rows = rows_of(record)
    assert fake.built == []
    assert {row["status"] for row in rows.values()} == {TIME_UP}
    assert record["finished"] is True
    assert rows[2, "reference bf16 compiled"]["status"] == TIME_UP
    assert capsys.readouterr().out.count(TIME_UP) == len(rows)


def test_a_killed_run_leaves_what_it_measured(fake, last, tmp_path):
    fake.fails["ours", 2] = KeyboardInterrupt()
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path / "x")
    assert stopped.value.code == 130
    record = written(tmp_path / "x")
    assert record["finished"] is False
    assert rows_of(record)[4, last]["status"] == "measured"


def test_an_engine_without_its_package_is_said_to_be_missing(fake, tmp_path, monkeypatch):
    from erw.bench import _build

    find = _build.importlib.util.find_spec
    monkeypatch.setattr(_build.importlib.util, "find_spec", lambda name: None if name == "deepspeed" else find(name))
    row = rows_of(run(tmp_path))[4, "final, DeepSpeed engine"]
    assert row["status"] == "not measured: deepspeed is not installed"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        pytest.param([], "--dry-run", marks=pytest.mark.skipif(ON_GPU, reason="only without a GPU")),
        (["--dry-run", "--reference-repo", "no/such/folder"], "--reference-repo"),
        (["--dry-run", "--attention", "fastest"], "--attention"),
        (["--dry-run", "--tokens", "17"], "--tokens"),
        (["--device", "cpu", "--batches", "8,0"], "--batches"),
        (["--device", "cpu", "--models", "B/3"], "B/3"),
        (["--device", "cpu", "--largest"], "--largest"),
        (["--check", "no/such/record.json"], "--check"),
    ],
)
def test_wrong_options_end_in_one_line(arguments, named, capsys, tmp_path):
    with pytest.raises(SystemExit) as exit_:
        step_bench.main([*arguments, "--out", str(tmp_path)])
    assert exit_.value.code == 2
    error = capsys.readouterr().err.strip()
    assert named in error and len(error.splitlines()) == 1


def test_check_fails_where_the_last_rung_fell(fake, last, tmp_path, capsys):
    """With the record's ratio raised by hand the same steps are slower than recorded; no clock decides it."""
    old = run(tmp_path / "old", "--rows", "final")
    (path,) = (tmp_path / "old").glob("*.json")
    for allowed, fell in ((1e-6, False), (1e6, True)):
        for scene in old["scenes"]:
            scene["rows"][-1]["to_anchor"] = allowed
        path.write_text(json.dumps(old))
        arguments = ["--check", str(path), "--out", str(tmp_path / f"new{fell}")]
        capsys.readouterr()
        if fell:
            with pytest.raises(SystemExit) as exit_:
                step_bench.main(arguments)
            assert exit_.value.code == 1
            lines = [line for line in capsys.readouterr().err.splitlines() if "fell by" in line]
            assert len(lines) == 2 and f"tiny, 16 tokens, batch 4: {last} fell by 100%" in lines[0]
        else:
            step_bench.main(arguments)
        assert [len(scene["rows"]) for scene in written(tmp_path / f"new{fell}")["scenes"]] == [2, 2]


def bare_step() -> tuple[OurStep, tuple]:
    scene = Scene("tiny", 4, feature_width=12)
    setup = Setup(code="ours", precision="bf16", loss="vectorised", optimizer="adamw_ema", host_reads=False)
    return OurStep(setup, scene, CPU), scene.inputs(CPU)


def test_our_bare_step_trains_and_keeps_masters():
    step, inputs = bare_step()
    for group in step.optimizer.param_groups:
        group["lr"] = 1e-3
    losses = []
    for _ in range(12):
        step.training.index.copy_(torch.arange(4))  # The same noise, t and label drop each time.
        losses.append(step(*inputs)["loss"].item())
    assert losses[-1] < losses[0] - 0.1
    assert step.training.index.tolist() == [4, 5, 6, 7]
    for weight, master in zip(step.parameters, step.masters, strict=True):
        assert weight.dtype == torch.bfloat16 and master.dtype == torch.float32
        assert torch.equal(weight, master.to(torch.bfloat16))
        assert weight.grad is None
    changed = [not torch.equal(step.optimizer.state[m]["ema"], m) for m in step.masters]
    assert all(changed)
    assert step.module.model.pos_embed.dtype == torch.float32


def test_our_bare_step_reads_nothing_back(monkeypatch):
    step, inputs = bare_step()
    step(*inputs)
    # On a CPU the optimizer's twin asks whether to skip (`bool`), which waits for nothing there.
    for name in ("item", "cpu", "tolist", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_, name=name: pytest.fail(f"the step called {name}"))
    step(*inputs)
