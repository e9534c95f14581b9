"""How long this process spends in collectives, where that can be told without waiting for anybody: on CPUs, where they block.

On a GPU a collective returns before it has begun; its share is in a profile (``--profile``). Time in a collective includes
waiting there for the other ranks.
"""

import functools
import time

import torch.distributed as dist

_COLLECTIVES = (
    "all_reduce", "reduce", "broadcast", "all_gather", "all_gather_into_tensor", "reduce_scatter", "reduce_scatter_tensor",
    "_all_gather_base", "_reduce_scatter_base", "all_to_all_single",
)  # fmt: skip


class Talk:
    """Seconds in collectives since the process joined the others."""

    def __init__(self):
        self.seconds, self._within = 0.0, False

    def listen(self) -> None:
        """Time every collective of torch.distributed from now on."""
        for name in _COLLECTIVES:
            if hasattr(dist, name):
                setattr(dist, name, self._timed(getattr(dist, name)))

    def _timed(self, collective):
        @functools.wraps(collective)
        def timed(*args, **kwargs):
            if self._within:
                return collective(*args, **kwargs)
            self._within, start = True, time.perf_counter()
            try:
                work = collective(*args, **kwargs)
                return None if work is None else _Work(self, work)
            finally:
                self.seconds += time.perf_counter() - start
                self._within = False

        return timed


class _Work:
    """A collective that goes on: the wait for it is timed too."""

    def __init__(self, talk: Talk, work: dist.Work):
        self._talk, self._work = talk, work

    def wait(self, *args, **kwargs):
        start = time.perf_counter()
        try:
            return self._work.wait(*args, **kwargs)
        finally:
            self._talk.seconds += time.perf_counter() - start

    def __getattr__(self, name: str):
        return getattr(self._work, name)
