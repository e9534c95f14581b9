"""Evaluation during and after training. A new evaluator is a new file and one line in ``EVALUATORS``."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor

from erw.errors import UserError
from erw.settings import nearest, setting

if TYPE_CHECKING:
    from erw.config import TrainConfig


class Evaluator(Protocol):
    """What judges samples."""

    def evaluate(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """Figures by name for images (N, C, H, W) fp32, drawn for labels (N,) int64, both on the CPU.

        Decoded images lie in [-1, 1], samples of pixels may leave it by a little: `erw.sample.to_uint8` clamps, and makes of
        them what is written to files.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Settings of the evaluation during training."""

    name: str = setting("none", "none, or the evaluator to ask: digits, features (docs/evaluation.md)")
    every: int = setting(0, "images between evaluations of the EMA; 0 evaluates at the end only")
    count: int = setting(1000, "images to sample for one evaluation; the first rank holds them all, decoded")
    batch: int = setting(128, "images that a rank samples at once; another number rounds otherwise")
    precision: Literal["fp32", "tf32", "bf16"] = setting("fp32", "what the network computes in while it is sampled")
    reference: str = setting("none", "statistics file that features compares with (erw eval --save-reference)")

    def __post_init__(self):
        if self.name != "none" and self.name not in EVALUATORS:
            raise UserError(f"--eval.name '{self.name}' is not known; {nearest(self.name, ['none', *EVALUATORS])}")
        if self.every < 0 or self.count < 1 or self.batch < 1:
            raise UserError("--eval.every must be 0 or more, --eval.count and --eval.batch at least 1")
        if (self.name == "features") != (self.reference != "none"):
            raise UserError("--eval.name features and --eval.reference FILE belong together: give both or neither")


def _digits(device: torch.device, config: "TrainConfig") -> Evaluator:
    from erw.evaluate.digits import load_judge

    return load_judge(device)


def _features(device: torch.device, config: "TrainConfig") -> Evaluator:
    from erw.evaluate.feature_judge import load_feature_judge

    return load_feature_judge(device, config.eval.reference, config.eval.count)


EVALUATORS: dict[str, Callable[[torch.device, "TrainConfig"], Evaluator]] = {"digits": _digits, "features": _features}
