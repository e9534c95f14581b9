"""Where a step's time goes: one run under torch's profiler, by kind of work."""

import os
import re
from collections.abc import Callable, Iterable

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from erw.profile.kinds import KINDS, kind_of

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler would announce each start and stop

_LAUNCH = re.compile(r"(cuda|cu)(Graph)?Launch")


def profiled(run: Callable[[], object], device: torch.device) -> list:
    """Averaged events of ``run``, those of the host and, on a GPU, those of the device."""
    on_cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_cuda) as seen:
        run()
        if on_cuda:
            torch.cuda.synchronize(device)
    return list(seen.key_averages())


def on_device(events: Iterable, device: torch.device) -> list[tuple[str, float, int]]:
    """(name, seconds of its own, times) of what ``device`` ran: CUDA kernels and copies; on a CPU torch's operators."""
    wanted = DeviceType.CUDA if device.type == "cuda" else DeviceType.CPU
    time = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    # Ranges that a program names lie over the kernels in them.
    seen = [e for e in events if e.device_type == wanted and not getattr(e, "is_user_annotation", False)]
    return [(e.key, getattr(e, time) / 1e6, e.count) for e in seen]


def breakdown(run: Callable[[], object], device: torch.device, seconds: float) -> dict:
    """One ``run``, which takes ``seconds`` when nobody watches: share of time by kind, launches and kernels.

    On a GPU the shares are of ``seconds``, and ``idle`` is what no kernel fills. On a CPU they are of the operators' own time,
    and there are no launches to count.
    """
    events = profiled(run, device)
    parts = on_device(events, device)
    spent = dict.fromkeys(KINDS, 0.0)
    for name, own, _ in parts:
        spent[kind_of(name)] += own
    busy = sum(spent.values())
    if device.type != "cuda":
        return {"share": {kind: own / busy for kind, own in spent.items()} | {"idle": None}, "launches": None, "kernels": None}
    share = {kind: own / seconds for kind, own in spent.items()} | {"idle": max(0.0, 1 - busy / seconds)}
    launches = sum(e.count for e in events if e.device_type == DeviceType.CPU and _LAUNCH.match(e.key))
    kernels = sum(times for name, _, times in parts if not name.startswith(("Memcpy", "Memset")))
    return {"share": share, "launches": launches, "kernels": kernels}
