"""Evaluation during and after training. A new evaluator is a new file and one line in ``EVALUATORS``."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from erw.errors import UserError
from erw.settings import setting


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Settings of the evaluation during training."""

    name: Literal["none", "digits"] = setting("none", "none, or the judge to ask")
    every: int = setting(0, "images between evaluations of the EMA; 0 evaluates at the end only")
    count: int = setting(1000, "images to sample for one evaluation")

    def __post_init__(self):
        if self.every < 0 or self.count < 1:
            raise UserError("--eval.every must be 0 or more and --eval.count at least 1")


def _digits(device: torch.device):
    from erw.evaluate.digits import load_judge

    return load_judge(device)


EVALUATORS: dict[str, Callable] = {"digits": _digits}
