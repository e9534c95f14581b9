"""Fixtures of the end-to-end tests: real runs through DeepSpeed, on two gloo ranks."""

import json

import pytest

from erw.engine.ranks import start_ranks, stop_ranks
from erw.settings import to_dict


@pytest.fixture(scope="session")
def run_jobs(run_erw, tmp_path_factory):
    """Train a list of settings on ``ranks`` ranks in one process group, plainly or by another program that takes them."""

    def run(jobs: list, ranks: int = 2, program: str = "tests/support/ranks.py") -> None:
        file = tmp_path_factory.mktemp("jobs") / "jobs.json"
        file.write_text(json.dumps([to_dict(job) for job in jobs]))
        done = run_erw(str(file), ranks=ranks, program=program)
        assert done.returncode == 0, done.stderr[-4000:]

    return run


@pytest.fixture(scope="session")
def one_rank():
    """A process group of one in this process, for the whole session: DeepSpeed joins once."""
    yield start_ranks()
    stop_ranks()
