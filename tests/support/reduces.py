"""Train a list of settings on every rank and note in which dtypes gradients were summed: RUN/reduced.json."""

import json
import sys
from collections import Counter
from pathlib import Path

import torch.distributed as dist

import train_ds
from erw.config import config_from_dict
from erw.engine.engine import Engine
from erw.engine.ranks import start_ranks, stop_ranks

jobs = json.loads(Path(sys.argv[1]).read_text())
ranks = start_ranks()
seen: Counter[str] = Counter()
own, read = dist.all_reduce, Engine.read
reading: list[bool] = []


def noting(tensor, *args, **kwargs):
    if tensor.numel() > 1000 and not reading:  # gradients: not norms and reports, not what a checkpoint gathers
        seen[str(tensor.dtype)] += 1
    return own(tensor, *args, **kwargs)


def quietly(*args, **kwargs):
    reading.append(True)
    try:
        return read(*args, **kwargs)
    finally:
        reading.pop()


dist.all_reduce, Engine.read = noting, quietly
for job in jobs:
    seen.clear()
    config = config_from_dict(job)
    train_ds.train(config)
    if ranks.first:
        Path(config.train.out, "reduced.json").write_text(json.dumps(seen))
stop_ranks()
