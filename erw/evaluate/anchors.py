"""What the papers publish of the same model at the same batch: figures to hold a run against while it trains.

ImageNet-1K at 256x256, SD-VAE latents, batch 256, no guidance, 50,000 samples by 250 steps of the SDE, in the metrics of
ADM's evaluator. None of them has been reproduced with this code. A paper's loss curve is in none of our sources.
"""

import math
from dataclasses import dataclass

from erw.config import TrainConfig
from erw.models.sit import SIZES

BATCH = 256
SAMPLES = 50_000
_FAMILIES = {"flow": "SiT", "ddpm": "DiT"}
_METHODS = {"none": "", "repa": " + REPA", "erw": " + ERW", "irepa": " + iREPA", "reg": " + REG"}


@dataclass(frozen=True)
class Anchor:
    """One published figure.

    model   such as SiT-XL/2
    method  none, repa or erw, as in `erw.align.METHODS`; or irepa, reg: other methods on the same model
    steps   optimizer steps of 256 images, as the paper counts them: ERW's without the warm-up
    images  training images by then, the warm-up's included, as our runs count
    metric  fid, sfid (lower is better) or is (higher is)
    source  paper and table
    """

    model: str
    method: str
    steps: int
    images: int
    metric: str
    value: float
    source: str

    @property
    def name(self) -> str:
        """Model and method, such as ``SiT-XL/2 + REPA``."""
        return self.model + _METHODS[self.method]


def _curve(model: str, method: str, source: str, metric: str, values: dict[int, float], warmup: int = 0) -> list[Anchor]:
    """Anchors of one curve: ``values`` by steps, after ``warmup`` steps that the paper does not count."""
    return [Anchor(model, method, s, (s + warmup) * BATCH, metric, v, source) for s, v in values.items()]


_K, _M = 1_000, 1_000_000
_ERW = "ERW (third version), Table 2"
_ERW_B = "ERW (third version), Table 7; its warm-up taken as Table 2's 100K steps"

PUBLISHED: tuple[Anchor, ...] = (
    *_curve("SiT-XL/2", "none", "REG, Table 1", "fid", {7 * _M: 8.3}),
    *_curve("SiT-XL/2", "repa", _ERW, "fid", {50 * _K: 52.3}),
    *_curve("SiT-XL/2", "repa", "REG, Table 1; REPA-E, Table 7", "fid",
            {100 * _K: 19.4, 200 * _K: 11.1, 400 * _K: 7.9, 4 * _M: 5.9}),
    *_curve("SiT-XL/2", "erw", _ERW, "fid", {50 * _K: 25.0, 100 * _K: 12.1}, warmup=100 * _K),
    *_curve("SiT-XL/2", "erw", _ERW, "sfid", {50 * _K: 12.06, 100 * _K: 5.25}, warmup=100 * _K),
    *_curve("SiT-XL/2", "erw", _ERW, "is", {50 * _K: 56.1, 100 * _K: 94.2}, warmup=100 * _K),
    *_curve("SiT-XL/2", "irepa", "iREPA, Tables 2 and 4, DINOv2-B", "fid", {100 * _K: 16.96}),
    *_curve("SiT-XL/2", "reg", "REG, Table 9", "fid", {100 * _K: 8.9, 200 * _K: 5.0, 400 * _K: 3.4, 4 * _M: 1.8}),
    *_curve("SiT-L/2", "irepa", "iREPA, Tables 2 and 4", "fid", {100 * _K: 20.3}),
    *_curve("SiT-L/2", "reg", "REG, Table 9", "fid", {400 * _K: 4.6}),
    *_curve("SiT-B/2", "repa", "ERW (third version), Table 7", "fid", {50 * _K: 78.2}),
    *_curve("SiT-B/2", "erw", _ERW_B, "fid", {50 * _K: 51.7}, warmup=100 * _K),
    *_curve("SiT-B/2", "irepa", "iREPA, Tables 2 and 4", "fid", {100 * _K: 43.4}),
    *_curve("SiT-B/2", "reg", "REG, Table 9", "fid", {400 * _K: 15.2}),
)  # fmt: skip


def anchors_for(config: TrainConfig) -> list[Anchor]:
    """Published figures that a run with these settings can be held against, its own method's first; [] where none apply.

    They apply to a published size at patch 2 on 1,000 classes and 32x32 VAE latents, batch 256, sampled without guidance.
    """
    model = config.model
    sizes = {f"{size}/2" for size, shape in SIZES.items() if shape == (model.depth, model.width, model.num_heads)}
    same = (
        (model.patch_size, model.input_size, model.in_channels, model.num_classes) == (2, 32, 4, 1000)
        and config.latents.kind == "vae"
        and config.train.batch == BATCH
        and config.sample.guidance == 1.0
    )
    if not same:
        return []
    names = {f"{_FAMILIES.get(config.objective.name)}-{size}" for size in sizes}
    return sorted((a for a in PUBLISHED if a.model in names), key=lambda anchor: anchor.method != config.method.name)


def nearest(anchors: list[Anchor], metric: str, images: int) -> Anchor | None:
    """Of the first anchor's method that has this metric, the anchor nearest to ``images`` by ratio; None without one."""
    of_metric = [a for a in anchors if a.metric == metric]
    own = [a for a in of_metric if a.method == of_metric[0].method]
    return min(own, key=lambda a: abs(math.log(a.images / max(images, 1))), default=None)


def remark(anchors: list[Anchor], result: dict[str, float], images: int, count: int) -> str:
    """What to add to a line with ``result``, of ``count`` samples after ``images`` training images; may be empty."""
    near = [anchor for metric in result if (anchor := nearest(anchors, metric, images))]
    several = len(near) > 1
    said = [beside(anchor) + (f" ({anchor.metric})" if several else "") for anchor in near]
    if near and count != SAMPLES:
        said.append(f"published figures are of {SAMPLES:,} samples, this one of {count:,}")
    return "".join(f"; {phrase}" for phrase in said)


def beside(anchor: Anchor) -> str:
    """A phrase for a line of an evaluation: ``published SiT-XL/2 + REPA at 50K steps: 52.3``."""
    return f"published {anchor.name} at {short(anchor.steps)} steps: {anchor.value:g}"


def short(count: int) -> str:
    """400000 as 400K, 7000000 as 7M."""
    for unit, size in (("M", _M), ("K", _K)):
        if count >= size and count % size == 0:
            return f"{count // size}{unit}"
    return f"{count:,}"
