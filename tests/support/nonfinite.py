"""Runs whose third step finds one gradient element that is not finite, on the first rank alone.

torchrun --nproc-per-node 2 tests/support/nonfinite.py JOBS.json
"""

import json
import sys

import erw  # noqa: F401
from erw.config import config_from_dict
from erw.engine.engine import Engine
from train_ds import stop_ranks, train

STEP = 3


def backward(self: Engine, loss) -> None:
    """`Engine.backward`, with an infinity put into one gradient in the third step."""
    self.seen = getattr(self, "seen", 0) + 1
    handles = []
    if self.seen == STEP and self.ranks.first:
        weight = next(p for name, p in self.parameters().items() if name.endswith("attn.qkv.weight"))
        handles.append(weight.register_hook(spoilt))
    whole(self, loss)
    for handle in handles:
        handle.remove()


def spoilt(grad):
    """A copy of ``grad`` whose first element is infinite."""
    grad = grad.clone()
    grad.view(-1)[0] = float("inf")
    return grad


if __name__ == "__main__":
    whole, Engine.backward = Engine.backward, backward
    with open(sys.argv[1], encoding="utf-8") as file:
        jobs = json.load(file)
    for job in jobs:
        train(config_from_dict(job))
    stop_ranks()
