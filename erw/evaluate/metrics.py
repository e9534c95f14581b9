"""Figures from features. What torch-fidelity computes is taken from there; the Frechet distance is ours, and checked."""

from typing import Any

import torch
from torch import Tensor

from erw.errors import UserError
from erw.evaluate.checked import checked_distance
from erw.evaluate.extract import Extracted
from erw.evaluate.frechet import Moments
from erw.evaluate.statistics import Statistics

NEIGHBOURS = 3
KID_SUBSETS, KID_SIZE, KID_SEED = 100, 1000, 2020
SPLIT = 5000  # images of one Inception Score, of which the mean is taken; without shuffling, as ADM does


def measure(samples: Extracted, reference: Statistics, device: torch.device) -> tuple[dict[str, float], dict[str, Any]]:
    """(figures, how they came about) of ``samples`` against ``reference``.

    fid (of Inception) or frechet; sfid and inception_score where there are spatial features and logits; precision,
    recall and kid where the reference has features. Raises `UserError` for NaN or infinity among the features.
    """
    moments = Moments.of(samples.features)
    main = "fid" if samples.logits is not None else "frechet"
    figures, notes = {}, {}
    for name, ours, theirs in (
        (main, moments, reference.moments),
        ("sfid", None if samples.spatial is None else Moments.of(samples.spatial), reference.spatial),
    ):
        if ours is not None and theirs is not None:
            _same_width(ours, theirs)
            checked = checked_distance(ours, theirs)
            figures[name] = checked.distance
            notes[name] = {"second method": checked.second, "tolerance": checked.tolerance}
    if samples.logits is not None:
        figures["inception_score"] = inception_score(samples.logits)
        notes["inception_score"] = {"splits": _splits(len(samples.logits)), "shuffled": False}
    if reference.features is not None:
        precision, recall = precision_recall(samples.features, reference.features, device)
        figures |= {"precision": precision, "recall": recall}
        notes["precision, recall"] = {"neighbours": NEIGHBOURS, "reference images": len(reference.features)}
        figures["kid"], figures["kid_sd"], notes["kid"] = kid(samples.features, reference.features)
    return figures, notes


def precision_recall(samples: Tensor, reference: Tensor, device: torch.device) -> tuple[float, float]:
    """(precision, recall) of features (N, D) and (M, D): the shares that lie within the distance of a third neighbour
    of the other side (Kynkaanniemi et al., arXiv 1904.06991, Eq. 1 and 2)."""
    _enough_neighbours(samples, reference)
    found = _fidelity("metric_prc").prc_features_to_metric(
        samples.to(device), reference.to(device), prc_neighborhood=NEIGHBOURS, save_cpu_ram=True, verbose=False
    )
    return found["precision"], found["recall"]


def kid(samples: Tensor, reference: Tensor) -> tuple[float, float, dict[str, int]]:
    """(mean, standard deviation over subsets, the subsets) of the unbiased squared MMD under the kernel (x.y / D + 1)^3
    (Binkowski et al., arXiv 1801.01401, Sec. 4), in fp64. It may be below zero where there is no difference."""
    size = min(KID_SIZE, len(samples), len(reference))
    # A subset of everything is the same each time.
    subsets = 1 if size == len(samples) == len(reference) else KID_SUBSETS
    found = _fidelity("metric_kid").kid_features_to_metric(
        samples.double(), reference.double(), kid_subsets=subsets, kid_subset_size=size, rng_seed=KID_SEED, verbose=False
    )
    mean, deviation = found["kernel_inception_distance_mean"], found["kernel_inception_distance_std"]
    return mean, deviation, {"subsets": subsets, "size": size, "seed": KID_SEED}


def inception_score(logits: Tensor) -> float:
    """exp(E KL(p(y|x) || p(y))) (Salimans et al., arXiv 1606.03498), the mean over parts of about 5,000 in their order."""
    score = _fidelity("metric_isc").isc_features_to_metric
    return score(logits, splits=_splits(len(logits)), shuffle=False)["inception_score_mean"]


def _splits(count: int) -> int:
    return max(1, round(count / SPLIT))


def _same_width(ours: Moments, theirs: Moments) -> None:
    if ours.mean.shape != theirs.mean.shape:
        raise UserError(
            f"the samples have {len(ours.mean)} features, the reference {len(theirs.mean)}: it was made with another network"
        )


def _enough_neighbours(*sides: Tensor) -> None:
    if min(map(len, sides)) <= NEIGHBOURS:
        raise UserError(f"precision and recall need more than {NEIGHBOURS} images a side, not {min(map(len, sides))}")


def _fidelity(module: str):
    """A module of torch-fidelity."""
    from importlib import import_module

    try:
        return import_module(f"torch_fidelity.{module}")
    except ImportError:
        raise UserError("precision, recall, KID and the Inception Score need torch-fidelity: pip install 'erw[eval]'") from None
