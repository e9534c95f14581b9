"""What ``auto`` becomes, operations and attention: decided once, before training starts; never changed silently."""

import typing
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import train_ds
from erw import ops, settle
from erw.build import build_step
from erw.engine.config import EngineConfig
from erw.engine.ranks import Ranks
from erw.errors import UserError
from erw.kernels.attention import BACKENDS, Problem
from tiny import random_step_inputs, tiny

ALONE = Ranks(0, 1, torch.device("cpu"))
GPU = Ranks(0, 1, torch.device("cuda"))


def settings(tmp_path, attention: str, **engine):
    return tiny("repa", tmp_path / "run", engine={"attention": attention, **engine})


def test_the_names_are_those_of_the_front():
    hint = typing.get_type_hints(EngineConfig)["attention"]
    assert typing.get_args(hint) == ("auto", *BACKENDS)
    assert EngineConfig().attention == "sdpa"


def test_the_default_is_torchs_and_says_nothing(tmp_path):
    config = settings(tmp_path, "sdpa")
    assert settle.settle_attention(config, ALONE) == (config, "")
    assert ops.resolve("reference") is ops.REFERENCE


def test_auto_on_a_cpu_measures_what_can_run_there(tmp_path):
    config, line = settle.settle_attention(settings(tmp_path, "auto"), ALONE)
    name = config.engine.attention
    assert name in ("sdpa", "flash", "matmul") and config == settings(tmp_path, name)
    assert line.startswith(f"attention: {name}, by auto") and "; matmul " in line and "\n" not in line


def test_auto_measures_the_run_s_own_problem(tmp_path, monkeypatch, elapse):
    asked = []

    def choose(problem, time, compiled):
        asked.append((problem, time(lambda: elapse(0.5)), compiled))
        return "flash", {"sdpa": 0.002, "flash": 0.0015, "fa2": "No module named 'flash_attn'"}

    monkeypatch.setattr(settle, "choose", choose)
    config = settings(tmp_path, "auto", accumulation=2, precision="autocast")
    settled, line = settle.settle_attention(config, ALONE)
    (problem, seconds, compiled), model = asked[0], config.model
    assert problem == Problem(8, model.num_heads, model.tokens, model.width // model.num_heads, torch.bfloat16, ALONE.device)
    assert seconds == 0.5 and not compiled
    assert settled == replace(config, engine=replace(config.engine, attention="flash"))
    assert "flash, by auto" in line and "flash 1.500 ms" in line and "fa2 No module named" in line
    settle.settle_attention(settings(tmp_path, "auto", compile="blocks"), ALONE)
    assert asked[1][2], "compiled blocks: measured under the compiler"


def test_the_first_rank_decides(tmp_path, monkeypatch):
    sent = []

    def broadcast(values, src, device):
        sent.append((list(values), src))
        values[0] = "flash"

    monkeypatch.setattr("torch.distributed.broadcast_object_list", broadcast)
    assert Ranks(1, 2, torch.device("cpu")).agree("cudnn") == "flash" and sent == [(["cudnn"], 0)]
    settled, line = settle.settle_attention(settings(tmp_path, "auto"), Ranks(1, 2, torch.device("cpu")))
    assert settled.engine.attention == "flash" and line.startswith("attention: flash")


def test_a_named_backend_is_what_the_model_runs(tmp_path, monkeypatch):
    config, line = settle.settle_attention(settings(tmp_path, "math"), ALONE)
    assert config.engine.attention == "math" and line == "attention: math, by name"
    phase = config.method.phase(0)
    step = build_step(config, phase)
    inputs = random_step_inputs(config, phase)
    asked = []
    true = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention",
        lambda *args: asked.append(torch.backends.cuda.flash_sdp_enabled()) or true(*args),
    )  # fmt: skip
    loss = step(*inputs)["loss"]
    assert asked == [False] * config.model.depth
    assert torch.allclose(loss, build_step(settings(tmp_path, "sdpa"), phase)(*inputs)["loss"], rtol=1e-5)


@pytest.mark.parametrize(
    ("attention", "reason"),
    [("fa9", "--engine.attention takes one of auto, math, sdpa"), ("fa4", "--engine.attention fa4 cannot run here: ")],
)
def test_what_cannot_run_ends_in_one_line_before_a_folder_is_made(attention, reason, tmp_path, capsys, monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("on a CUDA device it may run")
    monkeypatch.setattr(train_ds, "start_ranks", lambda timeout: ALONE)
    with pytest.raises(SystemExit) as exit_:
        train_ds.main(["digits-sit", "--out", str(tmp_path / "run"), "--engine.attention", attention])
    error = capsys.readouterr().err.strip().splitlines()
    assert exit_.value.code == 2 and len(error) == 1 and reason in error[0]
    assert not (tmp_path / "run").exists()


def test_auto_must_be_settled_first_and_missing_packages_are_named(tmp_path):
    with pytest.raises(UserError, match="--engine.attention auto: attention backend is 'auto', should be one of"):
        build_step(settings(tmp_path, "auto"), settings(tmp_path, "auto").method.phase(0))
    with pytest.raises(UserError, match="--engine.attention fa4: No module named"):
        ops.resolve("reference", "fa4")


def test_the_clock_measures_seconds(elapse):
    assert settle._clock(torch.device("cpu"))(lambda: elapse(0.5)) == 0.5


def test_ops_are_plain_on_a_cpu(tmp_path):
    config, lines = settle.settle(settings(tmp_path, "sdpa"), ALONE)
    assert config.engine.ops == "reference" and lines == []


def test_ops_are_fused_where_every_kernel_keeps_its_contract(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(settle, "broken", lambda *given: asked.append(given) or [])
    config = settings(tmp_path, "sdpa", precision="bf16")
    settled, line = settle.settle_ops(config, GPU)
    assert settled.engine.ops == "fused" and line.startswith("operations: fused, by auto")
    (case, dtypes, device), model = asked[0], config.model
    assert (case.width, case.heads, dtypes, device) == (model.width, model.num_heads, "mixed", "cuda")
    named = settings(tmp_path, "sdpa", ops="reference")
    assert settle.settle_ops(named, GPU) == (named, "") and len(asked) == 1


def test_a_broken_kernel_is_named_and_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(settle, "broken", lambda *_: ["bias_gelu: out0: 1 exceeds 0.1", "adamw_ema: no PTX"])
    settled, line = settle.settle_ops(settings(tmp_path, "sdpa"), GPU)
    assert settled.engine.ops == "reference"
    assert "kernels break their contract here: bias_gelu: out0: 1 exceeds 0.1; adamw_ema: no PTX" in line
