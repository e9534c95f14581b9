"""Several training runs in one process group: starting ranks costs more than these runs do.

    torchrun --nproc-per-node 2 tests/support/ranks.py JOBS.json

JOBS.json holds a list of settings (see `erw.settings.to_dict`), trained one after the other.
"""

import json
import sys

import erw  # noqa: F401
from erw.config import config_from_dict
from train_ds import train_and_leave

if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        jobs = json.load(file)
    train_and_leave(*(config_from_dict(job) for job in jobs))
