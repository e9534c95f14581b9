"""Where a step's teacher tokens come from: the dataset's cache, or the encoders in every step."""

import torch

from erw.data.memory import MemoryDataset
from erw.data.stream import Dataset, Wanted
from erw.errors import UserError
from erw.flops import cached_share, online_share
from erw.teachers import GRID, TeacherConfig, load_teacher, teacher_digest, teacher_specs
from erw.teachers.base import resampled
from erw.types import Batch, Targets, TeacherSpec


class FeatureSource:
    """Targets for a batch on the model's token ``grid``, and what they cost.

    ``wanted`` says what the data must bring along, up to the image ``until``, at which the last aligned step ends (None: all
    of them are). ``flops(planned)`` is the teachers' share of each aligned training
    image, ``planned`` images being aligned in all.
    """

    def __init__(self, config: TeacherConfig, dataset: Dataset, device: torch.device, group: int = 1, micro: int = 1,
                 grid: int = GRID, until: int | None = None):  # fmt: skip
        self.config, self.dataset, self.device, self.grid = config, dataset, device, grid
        self.specs = teacher_specs(config, grid)
        self._teachers: list = []
        self._forward_flops: dict[str, int] = {}
        online = config.source == "online" and bool(self.specs)
        self.wanted = Wanted(() if online else config.names, online, group if self.specs else 1, until)
        self._group, self._micro = group, micro
        if not online:
            for spec in self.specs:
                self._check_cache(spec)

    def _check_cache(self, spec: TeacherSpec) -> None:
        """Raise where the dataset's features are of other teachers, or of another width. Another grid is resampled."""
        if not self.dataset.cached:
            return
        have = self.dataset.cached.get(spec.name) or next(iter(self.dataset.cached.values()))
        if (have.spec.name, have.spec.width) != (spec.name, spec.width):
            raise UserError(
                f"the dataset caches features of {', '.join(self.dataset.cached)} (width {have.spec.width}, grid"
                f" {have.spec.grid}), --teacher.name {spec.name} has width {spec.width}, grid {spec.grid}: name that"
                " teacher, or prepare the dataset with this one"
            )
        now = teacher_digest(spec.name)
        if now and have.digest not in ("", now):
            raise UserError(
                f"the dataset caches features of {spec.name} with other weights than the file has now: prepare the dataset"
                " again, or put the old file back"
            )

    def prepare(self, start: int = 0) -> None:
        """Load the encoders, or fill the cache of a dataset in memory, where that is still to be done and a step from image
        ``start`` on aligns."""
        if self.wanted.at(start) != self.wanted:
            return
        for spec in self.specs:
            if spec.name not in self._forward_flops:
                self._prepare(spec)

    def _prepare(self, spec: TeacherSpec) -> None:
        cached = self.config.source == "cached"
        if cached and spec.name in self.dataset.cached:
            self._forward_flops[spec.name] = self.dataset.cached[spec.name].flops
            return
        if cached and not isinstance(self.dataset, MemoryDataset):
            raise UserError(
                "the dataset holds no teacher features: prepare it with them, or set --teacher.source online (it must"
                " then hold images)"
            )
        if not self.dataset.has_images:
            raise UserError("--teacher.source online needs images in the dataset (images.npy), and it holds none")
        teacher = load_teacher(spec.name, self.device, self.grid, self.config)
        self._forward_flops[spec.name] = teacher.flops
        if cached:
            self.dataset.add_features(spec, teacher.flops, lambda images: teacher.tokens(images.to(self.device)).cpu())
        else:
            self._teachers.append(teacher)

    def flops(self, planned: int) -> float:
        """Teacher FLOPs charged to each aligned image."""
        forward = sum(self._forward_flops.values())
        if self.config.source == "cached":
            return cached_share(forward, len(self.dataset), planned)
        return online_share(forward, self._group, self._micro)

    def __call__(self, batch: Batch) -> Targets:
        """The targets of ``batch``, on its device."""
        if self._teachers:
            return Targets(tuple(teacher.tokens(batch.images) for teacher in self._teachers), batch.first)
        return Targets(tuple(resampled(batch.features[spec.name], spec.grid) for spec in self.specs), batch.first)
