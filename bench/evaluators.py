"""Do the libraries that compute FID agree on one network's features?

``python -m erw.bench.evaluators --page docs/evaluation.md``

One file of random weights in the layout of the published Inception goes through torch-fidelity, torchmetrics and
clean-fid, with the same photographs (those that come with scikit-learn), enlarged and shrunk. What differs then is graph,
scaling of pixels and resize, and nothing else. A library that is not installed is left out, and its row says so.

``Frechet`` is the distance between a library's features and torch-fidelity's of the same images: what a FID is off by when
samples are measured with one and the reference with the other. It is given as a share of that between two sets of photographs.
"""

import argparse
import io
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from erw.bench._record import RESULTS
from erw.bench._section import with_section
from erw.environment import fingerprint, version
from erw.errors import UserError, exits_cleanly
from erw.evaluate.frechet import Moments, frechet_distance
from erw.evaluate.inception import FILES, build, read_weights

COUNT = 16
SIZES = (299, 256, 400)  # left as they are, enlarged to 299 pixels, shrunk
RECORD = RESULTS / "evaluators.json"
Features = Callable[[Tensor], Tensor]


def photographs(side: int, count: int, first: int = 0) -> Tensor:
    """``count`` crops (count, 3, side, side) uint8, number ``first`` and on, in turn of a temple and of a flower."""
    from sklearn.datasets import load_sample_images

    pictures = load_sample_images().images
    rng, crops = np.random.default_rng(side), []
    for i in range(first + count):
        picture = pictures[i % 2]
        top, left = (int(rng.integers(0, n - side + 1)) for n in picture.shape[:2])
        crops.append(picture[top : top + side, left : left + side])
    return torch.from_numpy(np.stack(crops[first:])).permute(0, 3, 1, 2).contiguous()


def random_weights(pixels: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """Weights in the published layout, random, with the batch norms' statistics taken of ``pixels`` (N, 3, H, W) uint8, so
    that no activation dies out or explodes."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Empty(FeatureExtractorInceptionV3):
        def load_state_dict(self, *arguments, **options):
            """The network is to keep the weights that it starts with."""

    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        network = Empty("inception", ["2048"], feature_extractor_weights_path=nothing)
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
                module.train()
        network(pixels)
    return network.eval().state_dict()


def _torch_fidelity(file: Path) -> Features:
    network = build(read_weights(file))
    return lambda pixels: network(pixels)[0]


def _torchmetrics(antialias: bool) -> Callable[[Path], Features]:
    def load(file: Path) -> Features:
        from torchmetrics.image.fid import NoTrainInceptionV3

        return NoTrainInceptionV3("inception", ["2048"], str(file), antialias=antialias)

    return load


def _clean_fid(mode: str | None) -> Callable[[Path], Features]:
    """Its network in PyTorch looks for the file where torch.hub would put a download. With ``mode`` None it is given what
    torch-fidelity gives its own."""

    def load(file: Path) -> Features:
        from cleanfid.features import feature_extractor
        from cleanfid.resize import build_resizer
        from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x as tensorflow

        checkpoints = file.parent / "checkpoints"
        checkpoints.mkdir(exist_ok=True)
        (checkpoints / FILES[0]).write_bytes(file.read_bytes())
        before = torch.hub.get_dir()
        torch.hub.set_dir(str(file.parent))
        try:
            network = feature_extractor("pytorch_inception", device=torch.device("cpu"), use_dataparallel=False)
        finally:
            torch.hub.set_dir(before)
        if mode is None:
            # It divides by 127.5 and takes 1 away.
            return lambda pixels: network(tensorflow(pixels.float(), (299, 299), align_corners=False) * 127.5 / 128)
        resize = build_resizer(mode)

        def features(pixels: Tensor) -> Tensor:
            images = [resize(image) for image in pixels.permute(0, 2, 3, 1).numpy()]
            return network(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2))

        return features

    return load


# (library, its setting, what it does to an image, how to load it); the first is what others are compared with.
ROWS: tuple[tuple[str, str, str, Callable[[Path], Features]], ...] = (
    ("torch-fidelity", "default", "bilinear as in TensorFlow 1; (x - 128) / 128", _torch_fidelity),
    ("torchmetrics", "antialias=False", "torch-fidelity's", _torchmetrics(False)),
    ("torchmetrics", "default", "bilinear, antialiased, centred; (x - 128) / 128", _torchmetrics(True)),
    ("clean-fid", "its network alone", "torch-fidelity's", _clean_fid(None)),
    ("clean-fid", "legacy_pytorch", "bilinear, centred; x / 127.5 - 1", _clean_fid("legacy_pytorch")),
    ("clean-fid", "clean", "bicubic by PIL, antialiased, centred; x / 127.5 - 1", _clean_fid("clean")),
)


def measure(count: int = COUNT, sizes: tuple[int, ...] = SIZES) -> dict[str, Any]:
    """The record: a row a library and size."""
    rows = []
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = Path(folder) / "random.pth"
        torch.save(random_weights(photographs(256, 8)), file)
        for side in sizes:
            pixels, others = photographs(side, count), photographs(side, count, first=count)
            ours = _torch_fidelity(file)
            first, scale = ours(pixels), Moments.of(ours(others))
            scale = frechet_distance(Moments.of(first), scale)
            for library, setting, does, load in ROWS:
                row = {"library": library, "setting": setting, "images": does, "side": side}
                rows.append(row | _compare(load, file, pixels, first, scale))
    environment = fingerprint(torch.device("cpu")) | {
        name: version(name) for name in ("torch-fidelity", "torchmetrics", "clean-fid")
    }
    return {"what": "evaluators", "count": count, "rows": rows, "environment": environment}


def _compare(load: Callable, file: Path, pixels: Tensor, first: Tensor, scale: float) -> dict[str, Any]:
    try:
        features = load(file)
    except ImportError as error:
        return {"status": f"not installed ({error.name})"}
    started = time.perf_counter()
    found = features(pixels).reshape(len(pixels), -1)
    seconds = time.perf_counter() - started
    distance = frechet_distance(Moments.of(found), Moments.of(first))
    return {
        "status": "measured",
        "largest_difference": float((found - first).abs().max() / first.std()),
        "frechet_share": distance / scale,
        "seconds_per_image": seconds / len(pixels),
    }


def table(record: dict[str, Any]) -> str:
    """The record as Markdown."""
    lines = ["| library | setting | image to network | pixels | largest difference of a feature | Frechet |", "|" + "---|" * 6]
    for row in record["rows"]:
        cells = [row["library"], row["setting"], row["images"], f"{row['side']}"]
        if row["status"] == "measured":
            cells += [f"{row['largest_difference']:.2g} sd", f"{row['frechet_share']:.2g}"]
        else:
            cells += [row["status"], ""]
        lines.append("| " + " | ".join(cells) + " |")
    about = record["environment"]
    packages = ", ".join(f"{name} {about[name]}" for name in ("torch-fidelity", "torchmetrics", "clean-fid", "torch"))
    lines.append(
        f"\n{record['count']} crops of two photographs, random weights; {packages}. Record: `bench/results/{RECORD.name}`."
    )
    return "\n".join(lines)


@exits_cleanly
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, default=RECORD, help="JSON file to write")
    parser.add_argument("--page", type=Path, help="page whose <!-- evaluators --> section is to hold the table")
    parser.add_argument("--count", type=int, default=COUNT, help="photographs a size")
    options = parser.parse_args()
    if options.count < 2:
        raise UserError(f"--count must be at least 2, not {options.count}")
    record = measure(options.count)
    options.record.parent.mkdir(parents=True, exist_ok=True)
    options.record.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(table(record))
    if options.page is not None:
        text = options.page.read_text(encoding="utf-8")
        options.page.write_text(with_section(text, "evaluators", table(record), str(options.page)), encoding="utf-8")


if __name__ == "__main__":
    main()
