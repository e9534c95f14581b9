"""Images from a trained model: `generate` for latents in memory, `erw.sample.job` for any number of them on disk."""

from erw.sample.blocks import BlockSampler, cut, generate
from erw.sample.labels import balanced_labels, parse_labels, random_labels
from erw.sample.load import load_run
from erw.sample.pictures import grid, to_uint8

__all__ = [
    "BlockSampler",
    "balanced_labels",
    "cut",
    "generate",
    "grid",
    "load_run",
    "parse_labels",
    "random_labels",
    "to_uint8",
]
