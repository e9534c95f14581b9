"""The Inception of FID: torch-fidelity's graph, which resizes as TensorFlow 1 did, with weights that the user brings."""

import hashlib
import io
import sys
from pathlib import Path

import torch
from torch import Tensor

from erw.cache import cache_folder
from erw.errors import UserError
from erw.evaluate.features import full_precision

# Both names are in use for one file: a port to PyTorch of the network that FID was defined with.
FILES = ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth")
PUBLISHED = "6726825d"  # how its SHA-256 starts
_CLASSES = 1008
_SPATIAL_CHANNELS = 7


class Inception:
    """``features`` (B, 2048) of the last pooling, ``logits`` (B, 1008) without bias, as the Inception Score takes them, and
    ``spatial`` (B, 2023): the first 7 channels of the first branch of ADM's mixed_6, 17x17, channels last, for sFID."""

    name, width = "inception", 2048

    def __init__(self, file: Path, device: torch.device):
        self.network, self.device = build(read_weights(file)).to(device), device
        self._spatial: list[Tensor] = []
        # TensorFlow counts mixed_0 (5b) to mixed_10 (7c); mixed_6/conv is the output of 6d's 1x1 branch.
        self.network.Mixed_6d.branch1x1.register_forward_hook(lambda module, args, output: self._spatial.append(output))
        digest = _sha256(file)
        self.facts = {
            "network": "Inception-v3 of 2015-12-05, torch-fidelity's graph, fp32",
            "resize": "bilinear to 299 as in TensorFlow 1, no antialiasing, corners not centred",
            "weights": {"file": file.name, "sha256": digest, "published": digest.startswith(PUBLISHED)},
        }
        if not digest.startswith(PUBLISHED):
            print(
                f"erw: {file} is not the published Inception (its SHA-256 starts with {digest[:8]}, not {PUBLISHED}): figures"
                " can be compared with others of this file only",
                file=sys.stderr,
                flush=True,
            )

    def __call__(self, pixels: Tensor) -> dict[str, Tensor]:
        with full_precision(self.device):
            features, logits = self.network(pixels.to(self.device))
        spatial = self._spatial.pop()[:, :_SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        return {"features": features, "logits": logits, "spatial": spatial}


def find_weights(given: Path | None) -> Path:
    """``given``, or one of `FILES` in erw's cache folder. Raises `UserError` that says which file to bring and from where."""
    if given is not None:
        if not given.is_file():
            raise UserError(f"--weights {given} is not a file: bring {FILES[0]} (docs/evaluation.md says from where)")
        return given
    found = [cache_folder() / name for name in FILES if (cache_folder() / name).is_file()]
    if found:
        return found[0]
    raise UserError(
        f"--features inception needs {FILES[0]} (release fid_weights of mseitzer/pytorch-fid on GitHub): name it with --weights"
        f" FILE or put it into {cache_folder()}; without it: --features efficientnet-lite0"
    )


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors in ``file``, nothing of which is executed. Raises `UserError` where they are no Inception of FID."""
    try:
        weights = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever the bytes lead it to
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:100]
        raise UserError(f"{file} is not a file of weights ({first}): download it again") from None
    head = weights.get("fc.weight") if isinstance(weights, dict) else None
    if not isinstance(head, Tensor):
        raise UserError(f"{file} holds no Inception-v3 (there is no fc.weight): bring {FILES[0]}")
    if head.shape[0] != _CLASSES:
        raise UserError(
            f"{file} classifies into {head.shape[0]}, FID's Inception into {_CLASSES} (torchvision's is another network): bring"
            f" {FILES[0]}"
        )
    return weights


def build(weights: dict[str, Tensor]) -> torch.nn.Module:
    """torch-fidelity's network with ``weights``, giving (features, logits). Raises `UserError` where they do not fit it."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError:
        raise UserError("--features inception needs torch-fidelity: pip install 'erw[eval]'") from None
    # It takes a file and unpickles whatever is in it, so it gets one that holds the tensors alone.
    file = io.BytesIO()
    torch.save(weights, file)
    file.seek(0)
    try:
        return FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=file)
    except RuntimeError as error:
        first = next((line.strip() for line in str(error).splitlines()[1:]), str(error))[:120]
        raise UserError(f"the weights have another layout than FID's Inception ({first}): bring {FILES[0]}") from None


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
