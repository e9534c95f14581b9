"""One way to time a function on a device, for what measures before it chooses and for the benchmarks."""

import time
from collections.abc import Callable

import torch


class Stopwatch:
    """Seconds of ``calls`` successive calls: CUDA events between synchronisations on a GPU, perf_counter elsewhere.

    The events also see the gaps in which the device waits for the host, which is how a training step is paid for.
    """

    def __init__(self, device: torch.device):
        self.device = device

    def __call__(self, function: Callable[[], object], calls: int = 1) -> float:
        """Seconds of one call, the mean over ``calls``."""
        if self.device.type != "cuda":
            start = time.perf_counter()
            for _ in range(calls):
                function()
            return (time.perf_counter() - start) / calls
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self.device)
        start.record()
        for _ in range(calls):
            function()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000 / calls
