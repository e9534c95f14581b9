"""How a step is executed: precision, ZeRO stage, accumulation, recompute. One owner per fact: a DeepSpeed JSON file holds
systems knobs only; learning rate, batch and precision are settings and are merged in here."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from erw.errors import UserError
from erw.optim import OptimConfig
from erw.settings import setting

BUILTIN = ("zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")

# DeepSpeed keys that have another owner, and the option that owns them.
_OWNED = {
    "train_batch_size": "--train.batch",
    "train_micro_batch_size_per_gpu": "--train.batch and --engine.accumulation",
    "gradient_accumulation_steps": "--engine.accumulation",
    "gradient_clipping": "--optim.clip",
    "optimizer": "--optim.*",
    "scheduler": "--optim.*",
    "bf16": "--engine.precision",
    "fp16": "--engine.precision",
    "torch_autocast": "--engine.precision",
    "activation_checkpointing": "--engine.recompute",
    "communication_data_type": "--engine.reduce_dtype",
}


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Settings of the engine."""

    ds_config: str = setting(
        "zero1", "DeepSpeed JSON file, or one that comes with erw: zero0 .. zero3, zero2_offload, zero3_offload"
    )
    precision: Literal["fp32", "bf16", "fp16", "autocast"] = setting(
        "bf16", "fp32; bf16 or fp16 (dynamic loss scale) weights with fp32 masters, from ZeRO-1 up; bf16 autocast over fp32"
    )
    accumulation: int = setting(1, "micro-batches a rank computes for one step")
    recompute: Literal["none", "selective", "full"] = setting(
        "none", "activation checkpointing of blocks: keep all, keep matmul results, keep only inputs"
    )
    ops: Literal["auto", "reference", "fused"] = setting(
        "auto", "operations: reference: plain PyTorch; fused: our kernels; auto: fused on a CUDA device where they pass a check"
    )
    attention: Literal["auto", "math", "sdpa", "flash", "efficient", "cudnn", "matmul", "fa2", "fa3", "fa4", "xformers"] = (
        setting(
            "sdpa",
            "attention backend: sdpa: torch's choice; another by name (erw.kernels.attention); auto: the fastest, measured",
        )
    )
    compile: Literal["none", "blocks"] = setting(
        "none", "torch.compile of each block, in place; the first steps take minutes, and need a C++ compiler on a CPU"
    )
    reduce_dtype: Literal["auto", "fp32", "bf16"] = setting(
        "auto", "dtype in which gradients are summed over ranks; auto: that of the weights"
    )
    timeout: float = setting(
        600.0, "seconds without a sign of life, or within a step of progress, after which a rank is lost and the job ends"
    )
    straggler: float = setting(
        1.5, "a rank is named that three reports long takes this many times the median rank's time; 0: never"
    )

    def __post_init__(self):
        if self.accumulation < 1:
            raise UserError(f"--engine.accumulation must be at least 1, not {self.accumulation}")
        if self.timeout <= 0:
            raise UserError(f"--engine.timeout must be above 0 seconds, not {self.timeout:g}")
        if self.compile == "blocks" and self.recompute == "selective":
            raise UserError(
                "--engine.compile blocks hides from --engine.recompute selective what it could keep: choose recompute none or"
                " full"
            )


def _find(name: str) -> Path:
    if name in BUILTIN:
        here = Path(__file__).resolve().parents[1]
        for folder in (here / "ds_configs", here.parent / "ds_configs"):
            if (folder / f"{name}.json").exists():
                return folder / f"{name}.json"
    return Path(name)


def read_ds_config(name: str) -> dict[str, Any]:
    """The DeepSpeed settings in file ``name``. Raises `UserError` for a bad file or a key that settings own."""
    path = _find(name)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"--engine.ds_config '{name}' cannot be read; built in: {', '.join(BUILTIN)}") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path} must hold a JSON object")
    for key in data:
        if key in _OWNED or key in ("lr", "batch_size"):
            raise UserError(f"{path}: '{key}' does not belong here; set {_OWNED.get(key, '--optim.lr or --train.batch')}")
    return data


def stage_of(ds_config: dict[str, Any]) -> int:
    """The ZeRO stage that a DeepSpeed dict asks for."""
    return int(ds_config.get("zero_optimization", {}).get("stage", 0))


def _accumulates_in(ds_config: dict[str, Any], config: EngineConfig) -> str:
    """The dtype of sums over micro-batches: that of the weights, unless a file says otherwise."""
    return ds_config.get("data_types", {}).get("grad_accum_dtype") or config.precision


def check_stage(config: EngineConfig) -> None:
    """Raise where precision, accumulation or compilation do not go with the stage."""
    ds_config = read_ds_config(config.ds_config)
    stage = stage_of(ds_config)
    if config.precision in ("bf16", "fp16") and stage == 0:
        raise UserError(
            f"--engine.precision {config.precision} needs ZeRO-1 or higher (free on one rank), not {config.ds_config}: choose"
            " --engine.ds_config zero1, or --engine.precision autocast"
        )
    sums = _accumulates_in(ds_config, config)
    if config.precision == "bf16" and stage == 1 and sums != "bf16":
        raise UserError(
            f"{config.ds_config}: data_types.grad_accum_dtype '{sums}' with --engine.precision bf16 needs stage 2 or higher"
            ' (at stage 1 DeepSpeed has another optimizer for it): set "stage": 2, or leave it out'
        )
    if config.compile == "blocks" and stage == 3:
        raise UserError(
            f"--engine.compile blocks does not work at ZeRO-3, which gathers weights between operations ({config.ds_config}):"
            " choose --engine.ds_config zero2, or --engine.compile none"
        )


def micro_batch(batch: int, accumulation: int, ranks: int) -> int:
    """Images in one micro-batch of one rank. Raises `UserError` unless the global batch divides evenly."""
    if batch % (ranks * accumulation):
        raise UserError(f"--train.batch {batch} is not divisible by {ranks} ranks x --engine.accumulation {accumulation}")
    return batch // (ranks * accumulation)


def clips_on_device(config: EngineConfig, ds_config: dict[str, Any], optim: OptimConfig) -> bool:
    """Whether `AdamWEMA` takes the global norm, clips and skips, without the host reading anything back.

    It must see all gradients of its rank at once: whole tensors at stage 0, one flat shard at stages 1 and 2. Not at stage 3,
    nor for two groups of weights (weight decay), which come one after the other, nor with a loss scale, offload, or gradients
    that a file has accumulated in another dtype than the weights'.
    """
    stage = stage_of(ds_config)
    if stage == 0:
        return True
    offloaded = bool(ds_config["zero_optimization"].get("offload_optimizer"))
    alike = config.precision in ("bf16", "fp32") and _accumulates_in(ds_config, config) == config.precision
    return stage <= 2 and alike and optim.weight_decay == 0.0 and not offloaded


def deepspeed_dict(config: EngineConfig, batch: int, ranks: int, optim: OptimConfig, top_stage: int) -> dict[str, Any]:
    """The dict for ``deepspeed.initialize``: the file's knobs, and what settings own. The stage is at most ``top_stage``."""
    merged = read_ds_config(config.ds_config)
    zero = dict(merged.get("zero_optimization", {"stage": 0}))
    if stage_of(merged) > top_stage:
        of_stage_3 = ("stage3", "memory_efficient_linear", "offload_param")
        zero = {key: value for key, value in zero.items() if not key.startswith(of_stage_3)}
        zero["stage"] = top_stage
    ours = clips_on_device(config, merged | {"zero_optimization": zero}, optim)
    if ours and zero["stage"]:
        zero["compute_grad_norm"] = False
    return {
        **merged,
        **({} if config.reduce_dtype == "auto" else {"communication_data_type": config.reduce_dtype}),
        "zero_optimization": zero,
        "train_batch_size": batch,
        "train_micro_batch_size_per_gpu": micro_batch(batch, config.accumulation, ranks),
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": 0.0 if ours else optim.clip,
        # Where our optimizer skips non-finite steps itself, DeepSpeed need not read back whether to.
        "bf16": {"enabled": config.precision == "bf16", "check_grad_overflow": not ours},
        "fp16": {"enabled": config.precision == "fp16", "loss_scale": 0.0, "hysteresis": 1},
        "torch_autocast": {"enabled": config.precision == "autocast", "dtype": "bfloat16"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 40,
        # Its timer stops the host twice a step, for figures that nobody prints.
        "timers": merged.get("timers", {"throughput": {"enabled": False}}),
    }
