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

    name: Literal["none", "digits", "features"] = setting("none", "none, or the judge to ask (docs/evaluation.md)")
    every: int = setting(0, "images between evaluations of the EMA; 0 evaluates at the end only")
    count: int = setting(1000, "images to sample for one evaluation")
    reference: str = setting("none", "statistics file that features compares with (erw eval --save-reference)")

    def __post_init__(self):
        if self.every < 0 or self.count < 1:
            raise UserError("--eval.every must be 0 or more and --eval.count at least 1")
        if (self.name == "features") != (self.reference != "none"):
            raise UserError("--eval.name features and --eval.reference FILE belong together: give both or neither")


def _digits(device: torch.device, config=None):
    from erw.evaluate.digits import load_judge

    return load_judge(device)


def _features(device: torch.device, config):
    from erw.evaluate.feature_judge import load_feature_judge

    return load_feature_judge(device, config.eval.reference, config.eval.count)


# Each builds, from the device and the `TrainConfig`, an object with ``evaluate(images, labels) -> dict[str, float]``.
EVALUATORS: dict[str, Callable] = {"digits": _digits, "features": _features}
