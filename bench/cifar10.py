"""All that the study ``cifar10`` needs, in one command: ``python -m erw.bench.cifar10 cifar10.tar.xz``.

    1  pixels of both splits                    OUT/cifar10-pixels, OUT/cifar10-test
    2  an encoder of the train split (SimCLR)   OUT/cifar10-encoder.safetensors
    3  linear probes of it and EfficientNet     OUT/cifar10-encoders.json: the better is the teacher, the other the judge
    4  the teacher's features                   OUT/cifar10, or OUT/cifar10-N with --images-per-class N
    5  statistics of the test split             OUT/cifar10-judge.npz, in the judge's features

What is there is not made again. The archive holds a folder for each split and in it one for each class. The last line is the
study's own command.
"""

import argparse
import io
import json
import tarfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import erw  # noqa: F401
from erw.bench import encoders
from erw.commands.encoder import train_to
from erw.data.store import StoreDataset, is_store
from erw.errors import UserError, exits_cleanly
from erw.evaluate.features import load_extractor
from erw.evaluate.statistics import open_reference, read_statistics
from erw.files import whole
from erw.prepare.job import PrepareJob, run_job
from erw.prepare.recipe import Recipe
from erw.teachers.encoder import PREFIX, describe
from erw.teachers.train_encoder import EncoderConfig

PACKAGED = "efficientnet-lite0"
SIDE = 32
# (epochs, width) of the encoder: a CPU has ten minutes for it, a GPU has not been timed.
_EFFORT = {"cpu": (3.0, 32), "cuda": (50.0, 128)}
_TEST_IMAGES = 10_000


@dataclass
class Steps:
    """The steps of one call: ``rows`` are (what, where, seconds or why not)."""

    archive: Path
    out: Path
    per_class: int
    config: EncoderConfig
    device: torch.device
    rows: list[tuple[str, str, str]] = field(default_factory=list)

    def file(self, name: str) -> Path:
        """OUT/cifar10NAME."""
        return self.out / f"cifar10{name}"

    @property
    def encoder(self) -> str:
        """The trained encoder as a teacher."""
        return f"{PREFIX}{self.file('-encoder.safetensors')}"

    @property
    def dataset(self) -> Path:
        """What the study trains on."""
        return self.file(f"-{self.per_class}" if self.per_class else "")

    def done(self, what: str, where: Path, started: float | None) -> None:
        """Note a step; ``started`` None: it was there."""
        said = "was there" if started is None else f"{time.perf_counter() - started:.0f} s"
        self.rows.append((what, str(where), said))

    def run(self) -> dict[str, Any]:
        """All steps; returns the record of the probes."""
        self._prepare(self.archive, "train", self.file("-pixels"))
        self._prepare(self.archive, "test", self.file("-test"))
        self._train()
        record = self._probe()
        teacher = record["winner"]
        (judge,) = set(record["encoders"]) - {teacher}
        source = self._part() if self.per_class else self.archive
        self._prepare(source, "train", self.dataset, teacher)
        self._statistics(judge)
        return record

    def _prepare(self, source: Path, split: str, out: Path, teacher: str = "none") -> None:
        started = None if is_store(str(out)) else time.perf_counter()
        batch = encoders.BATCH[self.device.type]
        how = {"teachers": teacher, "precision": "bf16", "batch": batch} if teacher != "none" else {}
        recipe = Recipe(size=SIDE, latents="pixels", **how)
        run_job(PrepareJob(source=source, out=out, split=split, recipe=recipe))
        self.done(f"{split}: pixels" + (f" and {teacher}" if teacher != "none" else ""), out, started)

    def _train(self) -> None:
        file = self.file("-encoder.safetensors")
        if file.exists():
            found = describe(self.encoder)
            if (found.shape.width, found.origin.seed) != (self.config.width, self.config.seed):
                raise UserError(
                    f"{file} has width {found.shape.width} and seed {found.origin.seed}, asked are {self.config.width} and"
                    f" {self.config.seed}: remove it, or name another --out"
                )
            self.done("encoder", file, None)
            return
        started = time.perf_counter()
        train_to(file, str(self.file("-pixels")), self.config, self.device)
        self.done("encoder", file, started)

    def _probe(self) -> dict[str, Any]:
        file, digest = self.file("-encoders.json"), describe(self.encoder).digest
        rows, images = len(StoreDataset(str(self.file("-pixels")))), 10 * self.per_class
        if file.exists():
            record = json.loads(file.read_text(encoding="utf-8"))
            same = record["encoders"].get(self.encoder, {}).get("identity", {}).get("digest") == digest
            if same and record["images"]["fitted_on"] == min(images or rows, rows):
                self.done("linear probes", file, None)
                return record
        started = time.perf_counter()
        paths = str(self.file("-pixels")), str(self.file("-test"))
        test = min(images, _TEST_IMAGES)
        record = encoders.compare(*paths, [PACKAGED, self.encoder], images, test, self.device)
        encoders.write(record, file)
        self.done("linear probes", file, started)
        return record

    def _part(self) -> Path:
        """A tar of the first images of each class of the train split, in the order of their names."""
        file = self.file(f"-{self.per_class}.tar")
        if not file.exists():
            with tarfile.open(self.archive) as archive, whole(file) as stream, tarfile.open(fileobj=stream, mode="w") as part:
                for name, content in first_of_each(archive, "train", self.per_class):
                    entry = tarfile.TarInfo(name)
                    entry.size = len(content)
                    part.addfile(entry, io.BytesIO(content))
        return file

    def _statistics(self, judge: str) -> None:
        file = self.file("-judge.npz")
        extractor = load_extractor(judge, self.device)
        if file.exists():
            protocol = read_statistics(file).protocol
            if all(protocol.get(key) == value for key, value in {"features": judge, **extractor.facts}.items()):
                self.done(f"statistics by {judge}", file, None)
                return
        started = time.perf_counter()
        open_reference(str(self.file("-test")), extractor, progress=True).save(file)
        self.done(f"statistics by {judge}", file, started)


def first_of_each(archive: tarfile.TarFile, split: str, count: int) -> list[tuple[str, bytes]]:
    """(name, bytes) of the first ``count`` images of each class of ``split``, by name. Raises `UserError` for fewer."""
    taken, found = Counter(), []
    for member in sorted((m for m in archive.getmembers() if m.isfile()), key=lambda m: m.name):
        parts = Path(member.name).parts
        if len(parts) < 3 or parts[-3] != split or taken[parts[-2]] == count:
            continue
        taken[parts[-2]] += 1
        found.append((member, "/".join(parts[-3:])))
    if not taken or min(taken.values()) < count:
        raise UserError(f"--images-per-class {count}: a class of {split} has {min(taken.values(), default=0)} images")
    # A compressed archive is read in its own order: backwards it would be unpacked again for every image.
    found.sort(key=lambda entry: entry[0].offset)
    return sorted((name, archive.extractfile(member).read()) for member, name in found)


def command(steps: Steps, record: dict[str, Any], study: str) -> str:
    """The study on what was made."""
    return (f"python -m erw.bench.convergence {study} --data {steps.dataset} --teacher {record['winner']}"
            f" --judge {steps.file('-judge.npz')}")  # fmt: skip


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m erw.bench.cifar10", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("archive", type=Path, metavar="ARCHIVE", help="tar (.gz, .bz2, .xz) of train/CLASS/*, test/CLASS/*")
    per_class = "of the study's training set, and ten times as many for each side of the probes; 0: all"
    parser.add_argument("--images-per-class", type=int, default=0, metavar="N", help=per_class)
    parser.add_argument("--epochs", type=float, help="of the encoder's training (default 3 on a CPU, 50 on a GPU)")
    parser.add_argument("--width", type=int, help="of the encoder (default 32 on a CPU, 128 on a GPU)")
    parser.add_argument("--out", type=Path, default=Path("data"), help="folder to write to (default data)")
    parser.add_argument("--record", type=Path, help="write the probes' record here as well")
    return parser.parse_args(arguments)


@exits_cleanly
def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    options = _options(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not options.archive.is_file():
        raise UserError(f"{options.archive} is not a file: name the archive of CIFAR-10's images by split and class")
    if options.images_per_class < 0:
        raise UserError("--images-per-class must not be negative")
    epochs, width = _EFFORT[device.type]
    epochs, width = epochs if options.epochs is None else options.epochs, width if options.width is None else options.width
    options.out.mkdir(parents=True, exist_ok=True)
    config = EncoderConfig(epochs=epochs, width=width)
    steps = Steps(options.archive, options.out, options.images_per_class, config, device)
    record = steps.run()
    if options.record is not None:
        encoders.write(record, options.record)
    print(f"\n{encoders.table(record)}\n")
    print("\n".join(f"{what:<42} {where:<36} {said}" for what, where, said in steps.rows))
    print(f"\n{command(steps, record, 'cifar10' if device.type == 'cuda' else 'cifar10-cpu')}")


if __name__ == "__main__":
    main()
