"""``erw eval --self-check``: is this machine's FID the FID of the papers? Answered with files whose figures are known.

VIRTUAL_imagenet256_labeled.npz            ADM's reference batch: 10,000 images, and moments of the whole data set
admnet_guided_upsampled_imagenet256.npz    ADM's own samples, judged against that batch in its README
"""

from pathlib import Path

import torch
from torch import Tensor

from erw.errors import UserError
from erw.evaluate.checked import checked_distance
from erw.evaluate.extract import extract
from erw.evaluate.features import load_extractor
from erw.evaluate.frechet import Moments
from erw.evaluate.images import open_images
from erw.evaluate.metrics import inception_score, measure
from erw.evaluate.statistics import Statistics, open_reference

# (figure, how far ours may be from it). ADM's evaluator runs TensorFlow, and takes distances for precision and recall in
# fp16. The first row is what users of it report for the batch against itself, the second is in its README.
KNOWN = {
    "VIRTUAL_imagenet256_labeled.npz": {"inception_score": (338.01, 1.5)},
    "admnet_guided_upsampled_imagenet256.npz": {
        "inception_score": (215.837, 1.0),
        "fid": (3.9426, 0.02),
        "sfid": (6.1404, 0.05),
        "precision": (0.8265, 0.005),
        "recall": (0.5309, 0.005),
    },
}
_ZERO = 1e-4
_DEVIATIONS = 6
_BLAME = "these weights, this resize or this file are not those of the published figures"


def self_check(samples: Path, reference: str | None, weights: Path | None, device: torch.device) -> list[str]:
    """Lines that say what was compared. Raises `UserError` for the first figure that is not as it is known to be.

    With ``reference`` None, ``samples`` is a batch with moments of its own, of whose data set its images are a part.
    """
    extractor = load_extractor("inception", device, weights)
    known = KNOWN.get(samples.name, {})
    images = open_images(samples)
    found = extract(images, extractor, progress=True)
    if reference is not None:
        figures, _ = measure(found, open_reference(reference, extractor, progress=True), device)
        if not known:
            raise UserError(f"--self-check knows no figures of {samples.name}: it knows those of {', '.join(KNOWN)}")
        return [_compared(name, figures[name], value, limit) for name, (value, limit) in known.items()]
    stored = open_reference(str(samples), extractor)
    if stored.moments.count:
        raise UserError(f"{samples} has no moments of its own (mu, sigma): --self-check needs ADM's batch, or a --reference")
    lines = _against_itself(stored)
    lines += _same_images("features", found.features, stored.moments)
    if stored.spatial is not None:
        lines += _same_images("spatial features", found.spatial, stored.spatial)
    score = inception_score(found.logits)
    return lines + [_compared("inception_score", score, *known["inception_score"])] if known else lines


def _against_itself(stored: Statistics) -> list[str]:
    """The Frechet distance of the stored moments to themselves is 0."""
    pairs = {"fid": stored.moments, "sfid": stored.spatial}
    return [
        _compared(f"{name} of the stored moments to themselves", checked_distance(moments, moments).distance, 0.0, _ZERO)
        for name, moments in pairs.items()
        if moments is not None
    ]


def _same_images(what: str, features: Tensor, stored: Moments) -> list[str]:
    """N images of a data set: the squared distance of their mean to the data set's is about tr(S) / N, and the mean of their
    squared distances to it about tr(S).

    Another resize, graph or weights moves or spreads every image's features in the same way, and shows here long before it
    shows in a FID. Less shift than expected is fine: images drawn class by class vary less.
    """
    count, spread = len(features), float(stored.covariance.trace())
    away = features.double() - stored.mean
    shift, squares = float(away.mean(dim=0).square().sum()), away.square().sum(dim=1)
    # Var |x|^2 = 2 tr(C^2) for x ~ N(0, C), C = S / N.
    limit = (spread + _DEVIATIONS * (2 * float(stored.covariance.square().sum())) ** 0.5) / count
    if not shift <= limit:
        raise UserError(f"--self-check: the mean of {what} is off by {shift:.4g}, chance explains {limit:.4g}: {_BLAME}")
    chance = _DEVIATIONS * float(squares.std()) / count**0.5
    return [
        f"squared shift of the mean of {what}: {shift:.4g}, by chance {spread / count:.4g} and at most {limit:.4g}",
        _compared(f"spread of {what}", float(squares.mean()), spread, chance),
    ]


def _compared(name: str, value: float, known: float, limit: float) -> str:
    if not abs(value - known) <= limit:
        raise UserError(f"--self-check: {name} is {value:.6g}, known is {known:.6g}, {limit:.2g} either way: {_BLAME}")
    return f"{name}: {value:.6g}, known {known:.6g}, {limit:.2g} either way"
