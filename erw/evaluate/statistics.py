"""What samples are compared with: moments of the features of real images, and some of the features themselves.

    mu, sigma        (D,), (D, D) fp64: mean and covariance of the features
    mu_s, sigma_s    the same of Inception's spatial features, for sFID
    features         (M, D) fp32, M up to 10,000: precision, recall and KID need more than moments
    protocol         JSON: which network, weights, resize and images these are of, and how many

ADM's reference batches have the first four and, as arr_0, images to take features of.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from erw.errors import UserError
from erw.evaluate.extract import Extracted, extract
from erw.evaluate.features import Extractor
from erw.evaluate.frechet import Moments
from erw.evaluate.images import BUILT_IN, Images, open_images, open_npz, read_array
from erw.files import whole

KEPT = 10_000  # reference images whose features are kept; as many as ADM's batches hold


@dataclass(frozen=True)
class Statistics:
    """Reference statistics of one network's features; ``protocol`` says of what."""

    moments: Moments
    spatial: Moments | None
    features: Tensor | None
    protocol: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write an .npz, whole or not at all."""
        arrays = {"mu": self.moments.mean.numpy(), "sigma": self.moments.covariance.numpy()}
        if self.spatial is not None:
            arrays |= {"mu_s": self.spatial.mean.numpy(), "sigma_s": self.spatial.covariance.numpy()}
        if self.features is not None:
            arrays["features"] = self.features.numpy()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole(path) as file:
                np.savez(file, **arrays, protocol=np.array(json.dumps(self.protocol)))
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}: name another file") from None


def statistics_of(images: Images, found: Extracted, extractor: Extractor) -> Statistics:
    """Statistics of images whose features were ``found``. Raises `UserError` for fewer than two, NaN or infinity."""
    spatial = None if found.spatial is None else Moments.of(found.spatial)
    return Statistics(Moments.of(found.features), spatial, _spread(found.features), _protocol(images, found.sha256, extractor))


def open_reference(path: str, extractor: Extractor, progress: bool = False) -> Statistics:
    """Statistics from what ``path`` names: a file of them, ADM's batch, or images to compute them of.

    Raises `UserError` for statistics of another network, other weights or another resize.
    """
    if path in BUILT_IN and not Path(path).exists():
        images = open_images(path)
        return statistics_of(images, extract(images, extractor, progress), extractor)
    file = Path(path)
    if file.is_file():
        archive = open_npz(file)
        if "protocol" in archive:
            return _checked(read_statistics(file), extractor, file)
        if "mu" in archive and extractor.name == "inception":
            return _adm(file, archive, extractor, progress)
    images = open_images(file)
    return statistics_of(images, extract(images, extractor, progress), extractor)


def read_statistics(file: Path) -> Statistics:
    """The statistics that `Statistics.save` wrote. Raises `UserError` for another file."""
    archive = open_npz(file)
    lacking = [name for name in ("mu", "sigma", "protocol") if name not in archive]
    if lacking:
        raise UserError(f"{file} lacks {', '.join(lacking)}: write statistics with erw eval --save-reference")
    try:
        protocol = json.loads(str(read_array(archive, "protocol", file)))
        count = int(protocol["count"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} has no readable protocol ({error}): write it again with erw eval --save-reference") from None
    moments, spatial = _both(archive, file, count)
    features = torch.from_numpy(read_array(archive, "features", file)) if "features" in archive else None
    if features is not None and (features.shape[1:] != moments.mean.shape or not features.isfinite().all()):
        raise UserError(f"{file}: features {tuple(features.shape)} do not fit mu, or hold NaN: write it again")
    return Statistics(moments, spatial, features, protocol)


def _both(archive: np.lib.npyio.NpzFile, file: Path, count: int) -> tuple[Moments, Moments | None]:
    spatial = _moments(archive, file, "mu_s", "sigma_s", count) if "mu_s" in archive else None
    return _moments(archive, file, "mu", "sigma", count), spatial


def _moments(archive: np.lib.npyio.NpzFile, file: Path, mean: str, covariance: str, count: int) -> Moments:
    if covariance not in archive:
        raise UserError(f"{file} has {mean} and no {covariance}: write or download it again")
    mu, sigma = (torch.from_numpy(read_array(archive, name, file).astype(np.float64)) for name in (mean, covariance))
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise UserError(f"{file}: {mean} {tuple(mu.shape)} and {covariance} {tuple(sigma.shape)} are no mean and covariance")
    if not (mu.isfinite().all() and sigma.isfinite().all()):
        raise UserError(f"{file}: {mean} or {covariance} holds NaN or infinity: write or download it again")
    return Moments(mu, sigma, count)


def _adm(file: Path, archive: np.lib.npyio.NpzFile, extractor: Extractor, progress: bool) -> Statistics:
    """Moments as stored, of the whole data set; features of the images beside them. The file says no count."""
    moments, spatial = _both(archive, file, 0)
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    facts: dict[str, Any] = {"source": file.name, "sha256": digest, "count": "unknown: moments as stored in the file"}
    features = None
    if "arr_0" in archive:
        images = open_images(file)
        features = extract(images, extractor, progress).features
        facts |= {"features_of": images.count, "image_size": list(images.shape[:2])}
    return Statistics(moments, spatial, features, {"features": extractor.name, **extractor.facts, **facts})


def _checked(statistics: Statistics, extractor: Extractor, file: Path) -> Statistics:
    """``statistics``, if they are of ``extractor``'s features."""
    for key, ours in {"features": extractor.name, **extractor.facts}.items():
        theirs = statistics.protocol.get(key)
        if theirs != ours:
            raise UserError(f"{file} was made with {key} {theirs}, this would be {ours}: write statistics anew, or use those")
    return statistics


def _protocol(images: Images, sha256: str, extractor: Extractor) -> dict[str, Any]:
    size = {"image_size": list(images.shape[:2]), "features_of": min(images.count, KEPT)}
    return {"features": extractor.name, **extractor.facts, "source": Path(images.name).name, "sha256": sha256,
            "count": images.count, **size}  # fmt: skip


def _spread(features: Tensor) -> Tensor:
    """Up to `KEPT` rows at equal distances, so that a data set in order of classes gives some of each."""
    if len(features) <= KEPT:
        return features
    return features[torch.linspace(0, len(features) - 1, KEPT, dtype=torch.float64).round().long()]
