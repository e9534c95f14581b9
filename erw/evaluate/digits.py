"""The judge of generated digits: a Frechet distance to the held-out digits, the accuracy of class conditioning, copies.

The judge is a classifier of another architecture and training than the teachers (a perceptron; they are convolutional),
so that aligning with a teacher is not scored by its likeness. It has seen the train split only.
"""

import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from erw.cache import Facts, Weights, cached_weights, reproducible, source_digest
from erw.data import digits
from erw.data.digits import Augmentation, augment
from erw.errors import UserError
from erw.evaluate.frechet import Moments, frechet_distance
from erw.evaluate.memorisation import copy_threshold, memorised_share

FEATURES = 32
_HIDDEN = 256
_SEED = 1
_STEPS, _BATCH, _LR, _WEIGHT_DECAY = 500, 256, 3e-3, 0.05
_AUGMENTATION = Augmentation(rotation=15, scale=0.15, shear=0.15, shift=1.0, contrast=0, noise=0.1, cutout=0)


class DigitsJudge(nn.Module):
    """The trained, frozen classifier; ``training_seconds`` is what training took on the machine that trained it."""

    def __init__(self, body: nn.Module, head: nn.Module, facts: Facts):
        super().__init__()
        self.body, self.head = body, head
        self.training_seconds = float(facts["training_seconds"])
        self.eval().requires_grad_(False)
        held_out, self.training = digits.load("held_out")[0], digits.load("train")[0]
        self.reference = Moments.of(self.features(held_out))
        self.threshold = copy_threshold(held_out, self.training)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """(N, 1, 8, 8) in [-1, 1] to (N, 32) fp32: the layer before the last rectifier."""
        if tuple(images.shape[1:]) != (1, digits.SIDE, digits.SIDE):
            raise UserError(f"--eval.name digits judges (N, 1, 8, 8) images, not {tuple(images.shape)}")
        weight = next(self.body.parameters())
        with torch.autocast(weight.device.type, enabled=False):
            return self.body(images.to(weight.device, torch.float32))

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """(N, 1, 8, 8) in [-1, 1] to the likeliest digits (N,) int64."""
        with torch.autocast(next(self.head.parameters()).device.type, enabled=False):
            return self.head(self.features(images)).argmax(dim=1)

    def evaluate(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """Judge samples (N, 1, 8, 8) in [-1, 1] that were drawn for ``labels`` (N,) int64.

        ``frechet`` is the distance to the 360 held-out digits, lower is better; ``accuracy`` the fraction of samples
        that look like what they were drawn for; ``memorised`` the fraction nearer to a training digit than held-out digits
        are (`erw.evaluate.memorisation`), about 0.05 for new digits. Raises `UserError` for fewer than 2 samples, NaN or
        infinity.
        """
        if len(images) != len(labels):
            raise ValueError(f"{len(images)} images but {len(labels)} labels")
        frechet = frechet_distance(Moments.of(self.features(images)), self.reference)
        hits = self.predict(images) == labels.to(next(self.head.parameters()).device)
        memorised = memorised_share(images, self.training, self.threshold)
        return {"frechet": frechet, "accuracy": float(hits.double().mean()), "memorised": memorised}


def load_judge(device: torch.device | str) -> DigitsJudge:
    """The judge on ``device``; trained (on the CPU) where the cache does not have it yet."""
    sources = source_digest(__file__, digits.__file__)
    weights, facts = cached_weights("digits-judge", {"sources": sources}, lambda: train_judge(*digits.load("train")))
    # On the meta device no initial weights are drawn: the caller's random state stays as it was.
    with torch.device("meta"):
        network = _network()
    network.load_state_dict(weights, assign=True)
    return DigitsJudge(network["body"], network["head"], facts).to(device)


def train_judge(images: Tensor, labels: Tensor) -> tuple[Weights, Facts]:
    """Weights of a classifier of ``images`` (N, 1, 8, 8), ``labels`` (N,) int64, and how long its training took."""
    with reproducible(_SEED):
        network, generator = _network(), torch.Generator().manual_seed(_SEED)
        optimizer = torch.optim.AdamW(network.parameters(), _LR, weight_decay=_WEIGHT_DECAY)
        rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LR, total_steps=_STEPS)
        started = time.perf_counter()
        for _ in range(_STEPS):
            rows = torch.randint(len(images), (_BATCH,), generator=generator)
            logits = network["head"](network["body"](augment(images[rows], _AUGMENTATION, generator)))
            optimizer.zero_grad()
            F.cross_entropy(logits, labels[rows]).backward()
            optimizer.step()
            rate.step()
        return dict(network.state_dict()), {"training_seconds": time.perf_counter() - started}


def _network() -> nn.ModuleDict:
    """``body``, images to features, and ``head``, features to logits."""
    body = nn.Sequential(
        nn.Flatten(),
        *_hidden(digits.SIDE**2),
        *_hidden(_HIDDEN),
        nn.Linear(_HIDDEN, FEATURES),
    )
    return nn.ModuleDict({"body": body, "head": nn.Sequential(nn.GELU(), nn.Linear(FEATURES, digits.NUM_CLASSES))})


def _hidden(inputs: int) -> tuple[nn.Module, ...]:
    return nn.Linear(inputs, _HIDDEN), nn.LayerNorm(_HIDDEN), nn.GELU()
