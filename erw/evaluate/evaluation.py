"""``erw eval``: figures of a set of samples, and the protocol that they were taken by."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from erw.errors import UserError
from erw.evaluate import EVALUATORS
from erw.evaluate.extract import PART, extract, pixel_digest
from erw.evaluate.features import FEATURES, load_extractor, signed
from erw.evaluate.images import Images, open_images
from erw.evaluate.metrics import measure
from erw.evaluate.protocol import label_counts, sampling_record, surroundings
from erw.evaluate.statistics import Statistics, open_reference
from erw.files import as_file_name, json_bytes, whole
from erw.settings import nearest
from erw.teachers import prefix_of

# Evaluators that bring their own reference and see images and labels, not features.
JUDGES = tuple(name for name in EVALUATORS if name != "features")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to evaluate. ``reference``: see `erw.evaluate.statistics.open_reference`; None: the run's own digits."""

    samples: Path
    features: tuple[str, ...]
    reference: str | None = None
    weights: Path | None = None
    allow_few: bool = False
    progress: bool = False

    def __post_init__(self):
        for name in self.features:
            if name not in FEATURES and name not in JUDGES and not prefix_of(name):
                raise UserError(f"--features '{name}' is not known; {nearest(name, [*FEATURES, *JUDGES])}")


def evaluate(request: Request, device: torch.device) -> dict[str, Any]:
    """The record of an evaluation: ``results`` and ``checks`` by features, and the ``protocol``. Plain JSON values.

    Raises `UserError` for samples, references and weights that cannot be used.
    """
    path = find_samples(request.samples)
    images, reference = open_images(path), request.reference or _reference_of(path)
    results, checks, references, networks, digest = {}, {}, {}, {}, ""
    for name in request.features:
        if name in JUDGES:
            results[name], digest = _judged(name, images, device)
            references[name] = "the judge's own"
            continue
        if reference is None:
            raise UserError("--reference is missing: name statistics (.npz), an .npz or a folder of real images, or 'digits'")
        extractor = load_extractor(name, device, request.weights if name == "inception" else None)
        require_enough("samples", images.count, extractor.width, request.allow_few)
        statistics = open_reference(reference, extractor, request.progress)
        # ADM's files do not say of how many images their moments are.
        if statistics.moments.count:
            require_enough("reference images", statistics.moments.count, extractor.width, request.allow_few)
        require_same_size(images, statistics)
        found = extract(images, extractor, request.progress)
        results[name], checks[name] = measure(found, statistics, device)
        references[name], networks[name], digest = statistics.protocol, extractor.facts, found.sha256
    samples = {"source": str(path), "count": images.count, "image_size": list(images.shape[:2]), "channels": images.shape[2],
               "sha256": digest, "labels": label_counts(images.labels)}  # fmt: skip
    protocol = {"samples": samples, "sampling": sampling_record(path), "features": networks, "reference": references,
                "allow_few": request.allow_few, "environment": surroundings(device)}  # fmt: skip
    return {"results": results, "checks": checks, "protocol": protocol}


def find_samples(path: Path) -> Path:
    """``path``, or the newest samples of the run in it. Raises `UserError` for a run without any."""
    if not (path / "checkpoints").is_dir():
        return path
    found = [folder for folder in path.glob("samples*") if folder.is_dir()]
    if not found:
        raise UserError(f"{path} is a run without samples: draw some first with erw sample {path} --count 50000")
    return max(found, key=lambda folder: (folder.stat().st_mtime, folder.name))


def require_same_size(images: Images, statistics: Statistics) -> None:
    """Raise `UserError` where samples and reference images differ in size: each is resized, and that shows."""
    theirs = statistics.protocol.get("image_size")
    if theirs is not None and list(theirs) != list(images.shape[:2]):
        raise UserError(
            f"{images.name} has images of {images.shape[1]}x{images.shape[0]}, the reference of {theirs[1]}x{theirs[0]}: resize"
            " one of them beforehand, in the way that your protocol says"
        )


def require_enough(side: str, count: int, width: int, allow_few: bool) -> None:
    """Raise `UserError` where ``count`` images make a singular covariance of ``width`` features, unless that is allowed."""
    if count <= width and not allow_few:
        raise UserError(
            f"{count} {side} for {width} features make a singular covariance, and the Frechet distance too high by an amount"
            " that depends on the count: take more, or say --allow-few and compare equal counts only"
        )


def write_record(record: dict[str, Any], path: Path) -> None:
    """Write ``record`` as JSON, whole or not at all. Raises `UserError` where that cannot be done."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as file:
            file.write(json_bytes(record))
    except OSError as error:
        raise UserError(f"--out {path} cannot be written: {error.strerror}") from None


def record_path(samples: Path, features: tuple[str, ...]) -> Path:
    """Where the record of these samples goes unless told otherwise: into their folder, or beside the file."""
    name = f"eval-{'-'.join(map(as_file_name, features))}.json"
    return samples / name if samples.is_dir() else samples.with_name(f"{samples.stem}-{name}")


def _judged(name: str, images: Images, device: torch.device) -> tuple[dict[str, float], str]:
    """What the evaluator ``name`` says of ``images``, and the SHA-256 of their pixels."""
    if images.labels is None:
        raise UserError(f"--features {name} asks whether a sample is what it was drawn for, and {images.name} has no labels")
    parts, digest = [], pixel_digest(images)
    for part in images.parts(PART):
        digest.update(part.tobytes())
        parts.append(torch.tensor(part).permute(0, 3, 1, 2))
    return EVALUATORS[name](device, None).evaluate(signed(torch.cat(parts)), images.labels), digest.hexdigest()


def _reference_of(path: Path) -> str | None:
    """The built-in digits for samples of a run that was trained on them."""
    for folder in (path, path.parent, path.parent.parent):
        file = folder / "config.json"
        if file.is_file():
            try:
                return "digits" if json.loads(file.read_text(encoding="utf-8"))["data"]["name"] == "digits" else None
            except (ValueError, KeyError, TypeError):
                return None
    return None
