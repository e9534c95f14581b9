"""The environment for a child process."""

import os

_LAUNCHER = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}


def environment(**more: str) -> dict[str, str]:
    """This process's environment without what a launcher sets: a test may have joined a group of its own."""
    return {**{k: v for k, v in os.environ.items() if k not in _LAUNCHER}, **more}
