"""What an evaluation's figures are called, and which way is better."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """``better``: none where neither way is."""

    label: str
    better: Literal["lower", "higher", "none"] = "none"


METRICS = {
    "frechet": Metric("Frechet distance", "lower"),
    "fid": Metric("FID", "lower"),
    "sfid": Metric("sFID", "lower"),
    "is": Metric("Inception Score", "higher"),
    "inception_score": Metric("Inception Score", "higher"),
    "kid": Metric("KID", "lower"),
    "precision": Metric("precision", "higher"),
    "recall": Metric("recall", "higher"),
    "accuracy": Metric("accuracy", "higher"),
    "memorised": Metric("share of near-copies"),
}

# Numbers in a row of evals.jsonl that say where it stands, not how good it is.
_PLACE = ("images", "flops", "seconds")


def metric(name: str) -> Metric:
    """The entry of ``METRICS``; one that is not there goes by its own name."""
    return METRICS.get(name.lower(), Metric(name.replace("_", " ")))


def figures(row: dict) -> dict[str, float]:
    """The metrics in a row of evals.jsonl."""
    numbers = {k: v for k, v in row.items() if isinstance(v, float | int) and not isinstance(v, bool)}
    return {name: float(value) for name, value in numbers.items() if name not in _PLACE}
