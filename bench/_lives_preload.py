"""Everything that a training process imports: what `erw.bench._lives` forks from has done only this. For CPUs."""

import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import sklearn.datasets  # noqa: F401

import train_ds  # noqa: F401
from erw.engine import shards  # noqa: F401  (imports deepspeed)
