"""DeepSpeed files hold systems knobs only; settings own the rest."""

import json
from pathlib import Path

import pytest

from erw.engine.config import BUILTIN, EngineConfig, check_stage, deepspeed_dict, micro_batch, read_ds_config
from erw.errors import UserError
from erw.optim import OptimConfig

FOLDER = Path(__file__).resolve().parents[2] / "ds_configs"


def test_every_file_is_built_in_and_owns_nothing_of_the_settings():
    files = sorted(FOLDER.glob("*.json"))
    assert [f.stem for f in files] == sorted(BUILTIN)
    for file in files:
        assert read_ds_config(file.stem) == read_ds_config(str(file)) == json.loads(file.read_text())


@pytest.mark.parametrize(
    "key",
    ["lr", "optimizer", "scheduler", "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps",
     "gradient_clipping", "bf16", "fp16"],
)  # fmt: skip
def test_a_key_with_another_owner_is_refused(tmp_path, key):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 2}, key: 1}))
    with pytest.raises(UserError, match=f"mine.json: '{key}' does not belong here; set --"):
        read_ds_config(str(file))


def test_bad_files_are_named(tmp_path):
    with pytest.raises(UserError, match="'zero7' cannot be read; built in: zero0"):
        read_ds_config("zero7")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UserError, match="bad.json is not JSON"):
        read_ds_config(str(tmp_path / "bad.json"))
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(UserError, match="must hold a JSON object"):
        read_ds_config(str(tmp_path / "list.json"))


def test_settings_are_merged_in():
    merged = deepspeed_dict(
        EngineConfig(ds_config="zero3", precision="bf16", accumulation=2), 64, 4, OptimConfig(clip=0.5), top_stage=3
    )
    assert (merged["train_batch_size"], merged["train_micro_batch_size_per_gpu"]) == (64, 8)
    assert merged["gradient_clipping"] == 0.5 and merged["bf16"]["enabled"]
    # The one that makes stage 3 round differently from the others in the forward.
    assert merged["zero_optimization"]["memory_efficient_linear"] is False


def test_a_warmup_stays_at_stage_two():
    merged = deepspeed_dict(EngineConfig(ds_config="zero3"), 64, 1, OptimConfig(), top_stage=2)
    assert merged["zero_optimization"]["stage"] == 2
    assert not any(key.startswith("stage3") for key in merged["zero_optimization"])


@pytest.mark.parametrize(
    ("config", "optim", "ours"),
    [
        (EngineConfig(ds_config="zero0", precision="fp32"), OptimConfig(weight_decay=0.1), True),
        (EngineConfig(ds_config="zero1"), OptimConfig(), True),
        (EngineConfig(ds_config="zero2", precision="fp32"), OptimConfig(), True),
        (EngineConfig(ds_config="zero1"), OptimConfig(weight_decay=0.1), False),
        (EngineConfig(ds_config="zero1", precision="fp16"), OptimConfig(), False),
        (EngineConfig(ds_config="zero2_offload"), OptimConfig(), False),
        (EngineConfig(ds_config="zero3"), OptimConfig(), False),
    ],
)
def test_either_our_optimizer_clips_or_deepspeed_does(config, optim, ours):
    merged = deepspeed_dict(config, 64, 1, optim, 3)
    assert merged["gradient_clipping"] == (0 if ours else 1)
    assert merged["bf16"]["check_grad_overflow"] != ours
    assert merged["zero_optimization"].get("compute_grad_norm", True) != (ours and merged["zero_optimization"]["stage"] > 0)


def test_bf16_needs_zero_one():
    with pytest.raises(UserError, match="needs ZeRO-1 or higher"):
        check_stage(EngineConfig(ds_config="zero0", precision="bf16"))
    check_stage(EngineConfig(ds_config="zero0", precision="autocast"))


def test_sums_of_another_dtype_need_zero_two(tmp_path):
    for stage in ("zero1", "zero2"):
        (tmp_path / stage).write_text(json.dumps(read_ds_config(stage) | {"data_types": {"grad_accum_dtype": "fp32"}}))
    with pytest.raises(UserError, match="zero1: data_types.grad_accum_dtype 'fp32' with .* needs stage 2 or higher"):
        check_stage(EngineConfig(ds_config=str(tmp_path / "zero1")))
    check_stage(EngineConfig(ds_config=str(tmp_path / "zero1"), precision="fp32"))
    other = EngineConfig(ds_config=str(tmp_path / "zero2"))
    check_stage(other)
    assert deepspeed_dict(other, 64, 1, OptimConfig(), 3)["gradient_clipping"] == 1  # DeepSpeed clips then


def test_a_batch_that_does_not_divide_is_refused():
    assert micro_batch(64, 2, 4) == 8
    with pytest.raises(UserError, match="--train.batch 64 is not divisible by 3 ranks x --engine.accumulation 2"):
        micro_batch(64, 2, 3)
    with pytest.raises(UserError, match="accumulation must be at least 1"):
        EngineConfig(accumulation=0)
