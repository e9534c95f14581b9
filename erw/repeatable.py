"""``--train.deterministic``: the same bits from the same start on the same machine, or an error that says why not."""

import functools
import os
from collections.abc import Callable

import torch

from erw.config import TrainConfig
from erw.errors import UserError

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
_WORKSPACES = (":4096:8", ":16:8")  # with which cuBLAS gives the same bits; it reads them when it starts
# Backends whose kernels torch's switch does not reach, and one that is chosen by the clock.
_OUT_OF_REACH = ("fa2", "fa3", "fa4", "xformers")
_REFUSALS = ("does not have a deterministic implementation", "Deterministic behavior was enabled", "is not deterministic")


def repeatable(train: Callable[[TrainConfig], None]) -> Callable[[TrainConfig], None]:
    """``train``, under torch's deterministic algorithms where its settings ask for them; as before afterwards.

    Raises `UserError` for settings that cannot promise equal bits, and where an operation has no deterministic form.
    """

    @functools.wraps(train)
    def wrapped(config: TrainConfig) -> None:
        if not config.train.deterministic:
            return train(config)
        check(config.engine.attention)
        set_workspace()
        cudnn = torch.backends.cudnn
        before = torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark
        _switch(True, True, False)
        try:
            train(config)
        except RuntimeError as error:
            if not any(words in str(error) for words in _REFUSALS):
                raise
            first = str(error).strip().splitlines()[0].split(", but you set")[0]
            raise UserError(f"--train.deterministic: {first}: drop the option, or that operation") from error
        finally:
            _switch(*before)

    return wrapped


def _switch(algorithms: bool, cudnn_deterministic: bool, cudnn_benchmark: bool) -> None:
    torch.use_deterministic_algorithms(algorithms)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn_deterministic, cudnn_benchmark


def check(attention: str) -> None:
    """Raise `UserError` for an attention backend that cannot promise equal bits."""
    if attention == "auto":
        raise UserError("--train.deterministic: --engine.attention auto goes by the clock: name a backend, such as flash")
    if attention in _OUT_OF_REACH:
        raise UserError(
            f"--train.deterministic: torch cannot hold --engine.attention {attention} to equal bits: choose sdpa, flash,"
            " efficient or math"
        )


def set_workspace() -> None:
    """Set the workspace that cuBLAS needs for equal bits, unless the environment has one of the two.

    Raises `UserError` for another, and where CUDA has started in this process, for then cuBLAS may have read it.
    """
    found = os.environ.get(_WORKSPACE)
    if found in _WORKSPACES:
        return
    if found is not None or torch.cuda.is_initialized():
        state = f"{_WORKSPACE} is {found}" if found is not None else f"CUDA has started without {_WORKSPACE}"
        raise UserError(f"--train.deterministic: {state}: set it to {' or '.join(_WORKSPACES)} before the process starts")
    os.environ[_WORKSPACE] = _WORKSPACES[0]
