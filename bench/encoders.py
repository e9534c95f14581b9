"""Which encoder knows a dataset best: ``python -m erw.bench.encoders TRAIN TEST --encoders A B --record FILE``.

A linear probe (`erw.probe.linear`) on the tokens of each, fitted on a prepared dataset of pixels and scored on another: on the
mean of all tokens, which decides, and on the means of the four quarters side by side, which know where things are as well.
Encoders compute in bf16, as they do for training.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import erw  # noqa: F401
from erw.bench._curves import environment
from erw.bench._section import with_section
from erw.data import DataConfig, Dataset, open_dataset
from erw.data.order import permutation
from erw.errors import UserError, exits_cleanly
from erw.files import json_bytes, whole
from erw.probe.linear import fit
from erw.teachers import GRID, Teacher, TeacherConfig, load_teacher

PAGE = Path("docs/teachers.md")
_SEED = 0
# Images at a time: what stays in a CPU's caches, and what fills a GPU.
BATCH = {"cpu": 8, "cuda": 256}


def chosen_rows(dataset: Dataset, images: int) -> np.ndarray:
    """``images`` rows of ``dataset``, drawn with a fixed seed, or all of them (0)."""
    return np.sort(permutation(_SEED, 0, len(dataset))[: images or None])


@torch.no_grad()
def pooled(teacher: Teacher, dataset: Dataset, rows: np.ndarray, device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
    """({"mean": (N, D), "quarters": (N, 4D)} fp32 of the tokens, labels (N,)), all on the CPU."""
    found: dict[str, list[Tensor]] = {"mean": [], "quarters": []}
    labels = []
    batch = BATCH[device.type]
    for start in tqdm(range(0, len(rows), batch), desc=teacher.spec.name, unit="batch", mininterval=1.0):
        part = rows[start : start + batch]
        tokens = teacher.tokens(dataset.images(part).to(device)).float()
        half = teacher.spec.grid // 2
        quarters = tokens.view(len(part), 2, half, 2, half, -1).mean(dim=(2, 4)).flatten(1)
        found["mean"].append(tokens.mean(dim=1).cpu())
        found["quarters"].append(quarters.cpu())
        labels.append(dataset.fetch(part)["labels"])
    return {name: torch.cat(parts) for name, parts in found.items()}, torch.cat(labels)


def compare(train: str, test: str, names: list[str], images: int, test_images: int, device: torch.device) -> dict[str, Any]:
    """The record: each encoder's accuracies and what it is, and the ``winner`` by accuracy on the mean of the tokens.

    ``images`` and ``test_images`` of each set, 0 for all. Raises `UserError` for encoders that cannot be had.
    """
    sets = [open_dataset(DataConfig(name="store", path=path)) for path in (train, test)]
    for path, dataset in zip((train, test), sets, strict=True):
        if not dataset.has_images:
            raise UserError(f"{path} holds no images: prepare it with --latents pixels")
    rows = [chosen_rows(sets[0], images), chosen_rows(sets[1], test_images)]
    encoders = {name: _probed(name, sets, rows, device) for name in names}
    winner = max(encoders, key=lambda name: encoders[name]["accuracy"]["mean"])
    seen = {"fitted_on": len(rows[0]), "scored_on": len(rows[1])}
    return {"what": "encoders", "images": seen, **environment(), "encoders": encoders, "winner": winner}


def _probed(name: str, sets: list[Dataset], rows: list[np.ndarray], device: torch.device) -> dict[str, Any]:
    teacher = load_teacher(name, device, GRID, TeacherConfig(name=name))
    started = time.perf_counter()
    (fitted, labels), (scored, answers) = (pooled(teacher, d, r, device) for d, r in zip(sets, rows, strict=True))
    seconds = time.perf_counter() - started
    probes = {kind: fit(features, labels) for kind, features in fitted.items()}
    return {
        "accuracy": {kind: probe.accuracy(scored[kind], answers) for kind, probe in probes.items()},
        "fitted": {kind: probe.accuracy(fitted[kind], labels) for kind, probe in probes.items()},
        "converged": {kind: probe.converged for kind, probe in probes.items()},
        "images_per_second": sum(map(len, rows)) / seconds,
        "identity": teacher.identity(),
    }


def table(record: dict[str, Any]) -> str:
    """Markdown: a row for each encoder, the better first."""
    heads = ["encoder", "accuracy, mean of the tokens", "accuracy, means of the quarters", "FLOPs an image", "images/s here"]
    lines = ["| " + " | ".join(row) + " |" for row in (heads, ["---"] * len(heads))]
    for name, found in sorted(record["encoders"].items(), key=lambda entry: -entry[1]["accuracy"]["mean"]):
        accuracy, flops = found["accuracy"], found["identity"]["flops_per_image"]
        cells = [f"`{name}`", f"{accuracy['mean']:.3f}", f"{accuracy['quarters']:.3f}", f"{flops:.2g}",
                 f"{found['images_per_second']:.3g}"]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def section(record: dict[str, Any], file: Path) -> str:
    """What docs/teachers.md says of a record."""
    images, hardware = record["images"], record["hardware"]
    trained = [
        f"`{name}`: trained in {found['identity']['origin']['training_seconds']:,.0f} s on"
        f" {found['identity']['origin']['images_seen']:,} images, {found['identity']['origin']['training_flops']:.2g} FLOPs."
        for name, found in record["encoders"].items()
        if "origin" in found["identity"]
    ]
    made = (f"Fitted on {images['fitted_on']:,} images of the train split, scored on {images['scored_on']:,} of the test split;"
            f" {hardware['device']}, {hardware['threads']} threads, other work beside it. Record: `{file}`.")  # fmt: skip
    return "\n\n".join([table(record), " ".join([*trained, made])])


def write(record: dict[str, Any], file: Path) -> None:
    """The record, whole or not at all. Raises `UserError` where there is no such folder."""
    if not file.parent.is_dir():
        raise UserError(f"--record {file}: there is no folder {file.parent}: make it")
    with whole(file) as stream:
        stream.write(json_bytes(record))


@exits_cleanly
def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m erw.bench.encoders", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("train", metavar="TRAIN", nargs="?", help="prepared dataset of pixels to fit on")
    parser.add_argument("test", metavar="TEST", nargs="?", help="prepared dataset of pixels to score on")
    parser.add_argument("--encoders", nargs="+", metavar="NAME", help="teachers by name, or encoder:FILE")
    parser.add_argument("--images", type=int, default=0, help="of TRAIN, drawn at random; 0: all (default)")
    parser.add_argument("--test-images", type=int, default=0, help="of TEST; 0: all (default)")
    parser.add_argument("--record", type=Path, required=True, metavar="FILE", help="JSON to write")
    parser.add_argument("--report", action="store_true", help=f"write the record's table into {PAGE}, run nothing")
    options = parser.parse_args(arguments)
    if options.report:
        found = json.loads(options.record.read_text(encoding="utf-8"))
        text = with_section(PAGE.read_text(encoding="utf-8"), "encoders", section(found, options.record), str(PAGE))
        PAGE.write_text(text, encoding="utf-8")
        return
    if not (options.train and options.test and options.encoders):
        raise UserError("TRAIN, TEST and --encoders are needed: two datasets of pixels and the encoders to compare")
    if options.images < 0 or options.test_images < 0:
        raise UserError("--images and --test-images must not be negative")
    if not options.record.parent.is_dir():
        raise UserError(f"--record {options.record}: there is no folder {options.record.parent}: make it")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    record = compare(options.train, options.test, options.encoders, options.images, options.test_images, device)
    write(record, options.record)
    print(f"{table(record)}\n\n{options.record}: {record['winner']} is the better")


if __name__ == "__main__":
    main()
