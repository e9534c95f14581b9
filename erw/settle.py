"""What the machine decides: settings that say ``auto`` become names, once, before training starts, and stay."""

import statistics
from collections.abc import Callable
from dataclasses import replace

import torch

from erw.clock import Stopwatch
from erw.config import TrainConfig
from erw.engine.config import micro_batch
from erw.engine.ranks import Ranks
from erw.errors import UserError
from erw.kernels.attention import Problem, choose, unusable
from erw.kernels.contract import Case, broken

# What attention computes in; autocast's is that of the engine's deepspeed settings.
_ATTENTION_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "autocast": torch.bfloat16}
_KERNEL_DTYPES = {"fp32": "fp32", "bf16": "mixed", "fp16": "mixed-fp16", "autocast": "mixed"}


def settle(config: TrainConfig, ranks: Ranks) -> tuple[TrainConfig, list[str]]:
    """(``config`` without ``auto`` in its engine, a line for each decision). Collective."""
    lines = []
    for decide in (settle_ops, settle_attention):
        config, line = decide(config, ranks)
        lines += [line] if line else []
    return config, lines


def settle_ops(config: TrainConfig, ranks: Ranks) -> tuple[TrainConfig, str]:
    """(``config`` with its operations named, a line that says why; empty where they were named or on a CPU).

    On a CUDA device every kernel first shows on this very device, at the model's width and in the run's dtypes, that it keeps
    its contract (`erw.kernels.contract`): all do: ``fused``; one does not: ``reference``, and the line says which. The first
    rank's choice is every rank's. Collective.
    """
    if config.engine.ops != "auto":
        return config, ""
    name, line = "reference", ""
    if ranks.device.type == "cuda":
        model = config.model
        case = Case(batch=2, tokens=64, width=model.width, heads=model.num_heads)
        faults = broken(case, _KERNEL_DTYPES[config.engine.precision], ranks.device.type)
        name = ranks.agree("reference" if faults else "fused")
        line = f"operations: {name}, by auto ("
        line += (
            f"kernels break their contract here: {'; '.join(faults)})" if faults else "every kernel keeps its contract here)"
        )
    return replace(config, engine=replace(config.engine, ops=name)), line


def settle_attention(config: TrainConfig, ranks: Ranks) -> tuple[TrainConfig, str]:
    """(``config`` with the attention backend that the run will use, a line that says which and why; empty for ``sdpa``).

    A named backend is tried, forward and backward, on the run's own head width, tokens, micro-batch and dtype. ``auto``
    measures them all there, and the first rank's choice is every rank's. Called once, before training starts. Raises
    `UserError` for a backend that cannot run. Collective.
    """
    name = config.engine.attention
    if name == "sdpa":
        return config, ""
    model, engine = config.model, config.engine
    problem = Problem(
        micro_batch(config.train.batch, engine.accumulation, ranks.count), model.num_heads, model.tokens,
        model.width // model.num_heads, _ATTENTION_DTYPES[engine.precision], ranks.device,
    )  # fmt: skip
    if name != "auto":
        if reason := unusable(name, problem):
            raise UserError(f"--engine.attention {name} cannot run here: {reason}")
        return config, f"attention: {name}, by name"
    compiled = engine.compile == "blocks" and ranks.device.type == "cpu"
    chosen, found = choose(problem, _clock(ranks.device), compiled)
    chosen = ranks.agree(chosen)
    took = [f"{n} {v if isinstance(v, str) else f'{v * 1e3:.3f} ms'}" for n, v in found.items()]
    report = f"attention: {chosen}, by auto (forward and backward of a block: {'; '.join(took)})"
    return replace(config, engine=replace(engine, attention=chosen)), report


def _clock(device: torch.device) -> Callable[[Callable[[], None]], float]:
    """Seconds of one call, the median of five measurements of four calls, after three that do not count."""
    stopwatch = Stopwatch(device)

    def seconds(run: Callable[[], None]) -> float:
        for _ in range(3):
            run()
        return statistics.median(stopwatch(run, calls=4) for _ in range(5))

    return seconds
