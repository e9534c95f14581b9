"""Where a step's teacher tokens come from: the dataset's cache, or the encoder in every step."""

import torch
from torch import Tensor

from erw.data.memory import MemoryDataset
from erw.data.stream import Dataset
from erw.errors import UserError
from erw.flops import measured_forward, teacher_share
from erw.teachers import TeacherConfig, load_teacher, teacher_spec
from erw.types import Batch


class FeatureSource:
    """Tokens (B, N, D) for a batch, and what they cost.

    ``flops(planned)`` is the teacher's share of each aligned training image, ``planned`` images being aligned in all.
    Loading the encoder is put off until a phase aligns.
    """

    def __init__(self, config: TeacherConfig, dataset: Dataset, device: torch.device):
        self.config, self.dataset, self.device = config, dataset, device
        self.spec = teacher_spec(config.name)
        self._teacher = None
        self._forward_flops = 0
        if self.spec is not None and dataset.teacher is not None and config.source == "cached":
            self._check_cache()

    def _check_cache(self) -> None:
        have = self.dataset.teacher
        if have != self.spec:
            raise UserError(
                f"the dataset caches features of {have.name} (width {have.width}, grid {have.grid}), --teacher.name"
                f" {self.spec.name} has width {self.spec.width}, grid {self.spec.grid}: name that teacher, or prepare"
                " the dataset with this one"
            )

    def prepare(self) -> None:
        """Load the encoder, or fill the cache of a dataset in memory, where that is still to be done."""
        if self.spec is None or self._teacher is not None:
            return
        if self.config.source == "cached" and self.dataset.teacher is not None:
            self._forward_flops = self.dataset.teacher_flops
            return
        if self.config.source == "cached" and not isinstance(self.dataset, MemoryDataset):
            raise UserError(
                "the dataset holds no teacher features: prepare it with them, or set --teacher.source online (it must"
                " then hold images)"
            )
        if self.dataset.images is None:
            raise UserError("--teacher.source online needs images in the dataset (images.npy), and it holds none")
        teacher = load_teacher(self.config.name, self.device)
        one = torch.as_tensor(self.dataset.images[:1]).to(self.device)
        self._forward_flops = measured_forward(_Tokens(teacher), one)
        if self.config.source == "cached":
            self.dataset.add_features(
                self.spec, self._forward_flops, lambda images: teacher.tokens(images.to(self.device)).cpu()
            )
        else:
            self._teacher = teacher

    def flops(self, planned: int) -> float:
        """Teacher FLOPs charged to each aligned image."""
        cached = len(self.dataset) if self.config.source == "cached" else None
        return teacher_share(self._forward_flops, cached, planned)

    def __call__(self, batch: Batch) -> Tensor:
        """Tokens of ``batch``, on its device."""
        if batch.features is not None:
            return batch.features
        return self._teacher.tokens(batch.latents if batch.images is None else batch.images)


class _Tokens(torch.nn.Module):
    """The teacher's token forward as a module, for the FLOP counter."""

    def __init__(self, teacher):
        super().__init__()
        self.teacher = teacher

    def forward(self, images: Tensor) -> Tensor:
        return self.teacher.tokens(images)
