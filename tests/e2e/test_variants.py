"""Variants of the methods, trained for real: NT-Xent, cut-off, several teachers, placement, fp16, boards."""

import json
from dataclasses import replace

import pytest
import torch

from erw.align import Erw, Repa
from states import relative, state_at
from tiny import BATCH, random_step_inputs, tiny

pytestmark = [pytest.mark.slow, pytest.mark.dist]
LAST = 6 * BATCH

CONTRAST = Repa(depth=2, projector_width=24, align="nt-xent", group_images=8)
CUT = Erw(depth=1, warmup_images=2 * BATCH, projection_depth=2, projector_width=24, decay="cut-off", decay_images=2 * BATCH)
PLACED = Erw(first=2, depth=3, warmup_images=2 * BATCH, projection_depth=3, projector_width=24)
SPLITS = {"1x1": (1, 1), "1x8": (1, 8), "2x4": (2, 4), "2x1": (2, 1)}  # ranks x accumulation


def variant(method, out, stage: str = "zero1", accumulation: int = 1, **sections):
    config = tiny(method.name, out, engine={"ds_config": stage, "precision": "fp32", "accumulation": accumulation}, **sections)
    return replace(config, method=method)


@pytest.fixture(scope="module")
def runs(run_jobs, tmp_path_factory):
    """All variants, one launch for each number of ranks."""
    folder = tmp_path_factory.mktemp("variants")
    jobs = {1: [], 2: []}
    for name, (ranks, accumulation) in SPLITS.items():
        jobs[ranks].append(variant(CONTRAST, folder / f"contrast-{name}", accumulation=accumulation))
    for stage in ("zero0", "zero1", "zero2", "zero3"):
        jobs[2].append(variant(CUT, folder / f"cut-{stage}", stage))
    both = {"name": "digits-contrastive,digits-supervised"}
    jobs[2].append(variant(Repa(depth=2, projector_width=24), folder / "teachers", teacher=both))
    jobs[1].append(variant(PLACED, folder / "placed", "zero3", train={"save_every": BATCH, "keep": 9}))
    falling = {"lr_schedule": "cosine", "lr_warmup_images": 2 * BATCH, "lr_final": 0.1}
    jobs[1].append(variant(replace(CUT, warmup_images=3 * BATCH), folder / "falling", optim=falling))
    for ranks, configs in jobs.items():
        run_jobs(configs, ranks=ranks)
    return folder


def rows(run) -> list[dict]:
    return [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines() if "loss" in row]


@pytest.mark.parametrize("name", ["1x8", "2x4", "2x1"])
def test_nt_xent_does_not_depend_on_ranks_or_micro_batches(name, runs):
    """A group of 8 lies within, across and over several micro-batches of 2 (1x8, 2x4), 8 (2x1) and 16 (1x1) images."""
    whole, split = state_at(runs / "contrast-1x1", LAST), state_at(runs / f"contrast-{name}", LAST)
    assert relative(whole, split) < 1e-6
    aligned = [row["align"] for row in rows(runs / "contrast-1x1")]
    assert aligned[0] > 1.0 and aligned == pytest.approx([row["align"] for row in rows(runs / f"contrast-{name}")], rel=1e-5)


@pytest.mark.parametrize("stage", ["zero0", "zero1", "zero2", "zero3"])
def test_after_the_cut_off_nothing_of_the_method_is_computed(stage, runs):
    seen = rows(runs / f"cut-{stage}")
    assert [row["coefficient"] for row in seen] == [1.0, 1.0, 0.5, 0.5, 0.0, 0.0]
    assert ["align" in row for row in seen] == [True] * 4 + [False] * 2
    # Fewer FLOPs than before the cut: neither projector nor teacher is paid for.
    spent = [later["flops"] - earlier["flops"] for earlier, later in zip(seen[2:], seen[3:], strict=False)]
    assert spent[-1] < spent[0]


def test_two_teachers_train_two_projectors(runs):
    state = state_at(runs / "teachers", LAST)["exp_avg"]
    for k in (0, 1):
        assert state[f"projectors.{k}.0.weight"].abs().sum() > 0


def test_a_warm_up_of_later_blocks_holds_those_and_hands_them_over(runs):
    warm = set(state_at(runs / "placed", 2 * BATCH)["weights"])
    blocks = {name.split(".")[1] for name in warm if name.startswith("blocks.")}
    assert blocks == {"1", "2"}
    after = set(state_at(runs / "placed", 3 * BATCH)["weights"])
    assert warm < after and any(name.startswith("blocks.0.") for name in after)


def test_the_learning_rate_rises_and_falls_within_each_phase(runs):
    share = [row["lr"] / 1e-4 for row in rows(runs / "falling")]
    assert share == pytest.approx([0.0, 0.5, 1.0, 0.0, 0.5, 1.0])
    assert [row["phase"] for row in rows(runs / "falling")] == ["warmup"] * 3 + ["full"] * 3


def test_an_fp16_overflow_skips_the_step_and_halves_the_scale(one_rank, tmp_path):
    if not torch.ops.mkldnn._is_mkldnn_fp16_supported():
        pytest.skip("this CPU has no fp16 matmul")
    from train_ds import build_engine

    config = tiny("sit", tmp_path, engine={"ds_config": "zero1", "precision": "fp16"})
    phase = config.method.phase(0)
    engine = build_engine(config, phase, one_rank, None)
    x, t, y, target, _ = random_step_inputs(config, phase)

    def step(scale: float) -> None:
        engine.backward(engine(x, t, y, {"velocity": target["velocity"] * scale}, None)["loss"])
        engine.step(1e-3)

    step(1.0)
    before, state = engine.read("weights"), engine.scaler_state()
    step(1e30)
    after = engine.read("weights")
    assert all(torch.equal(before[name], after[name]) for name in before) and engine.steps() == 1
    assert engine.loss_scale() == state["cur_scale"] / 2
    later = build_engine(config, phase, one_rank, None)
    later.load(lambda key: engine.read(key), engine.steps(), engine.scaler_state())
    assert later.scaler_state() == engine.scaler_state() and later.loss_scale() == engine.loss_scale()


def test_weights_and_biases_gets_the_curves_when_asked(run_erw, tmp_path):
    pytest.importorskip("wandb", reason="wandb is an extra and is not installed")
    out = tmp_path / "run"
    done = run_erw("digits-sit", "--out", out, "--images", 640, "--train.wandb", "erw-test", "--eval.name", "none",
                   env={"WANDB_MODE": "offline", "WANDB_SILENT": "true"})  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = out.glob("wandb/offline-run-*/*.wandb")
    assert file.stat().st_size > 1000 and (out / "wandb" / "id").read_text() in file.name
