"""The evaluator ``features``: distances in a network's features to stored statistics, while training runs."""

import sys
from pathlib import Path

import torch
from torch import Tensor

from erw.errors import UserError
from erw.evaluate.checked import checked_distance
from erw.evaluate.features import Extractor, load_extractor
from erw.evaluate.frechet import Moments
from erw.evaluate.metrics import kid
from erw.evaluate.statistics import Statistics, open_reference, read_statistics
from erw.sample import to_uint8

_PART = 50


class FeatureJudge:
    """Compares samples with ``reference``, of the same extractor's features."""

    def __init__(self, extractor: Extractor, reference: Statistics):
        self.extractor, self.reference = extractor, reference

    def evaluate(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """``frechet`` and, where the reference holds features, ``kid`` of samples (N, C, H, W) in [-1, 1], C 1 or 3.

        They are rounded to 256 levels first, as saved samples are. With N below ten times the features the Frechet
        distance is too high: compare it between equal counts only; KID has no such bias.
        """
        pixels = torch.from_numpy(to_uint8(images.detach().cpu())).permute(0, 3, 1, 2)
        if pixels.shape[1] not in (1, 3):
            raise UserError(f"--eval.name features judges images of 1 or 3 channels, not {pixels.shape[1]}: are these latents?")
        parts = [self.extractor(part.expand(-1, 3, -1, -1))["features"].float().cpu() for part in pixels.split(_PART)]
        features = torch.cat(parts)
        found = {"frechet": checked_distance(Moments.of(features), self.reference.moments).distance}
        if self.reference.features is not None:
            found["kid"] = kid(features, self.reference.features)[0]
        return found


def load_feature_judge(device: torch.device, reference: str, count: int) -> FeatureJudge:
    """The judge of the statistics file ``reference``, which says itself which network it is of; ``count`` images are to be
    judged at a time. Raises `UserError` for a file that is none and for a network that cannot be had."""
    file = Path(reference)
    if not file.is_file():
        raise UserError(f"--eval.reference '{reference}' is not a file: write one with erw eval --save-reference")
    name = read_statistics(file).protocol.get("features")
    extractor = load_extractor(str(name), device)
    statistics = open_reference(reference, extractor)
    if count <= len(statistics.moments.mean):
        print(
            f"erw: --eval.count {count} is no more than the {len(statistics.moments.mean)} features of {name}: compare this"
            " Frechet distance with others of the same count only",
            file=sys.stderr,
            flush=True,
        )
    return FeatureJudge(extractor, statistics)
