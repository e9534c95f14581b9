"""Whether the ranks of a launch find each other, agree on versions, and how fast they talk."""

import os
import socket
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from erw.doctor.checks import Finding
from erw.environment import version

_PATIENCE = timedelta(seconds=30)
_BYTES = 2**25
_ALIKE = ("erw", "torch", "deepspeed", "triton")


def meet(device: torch.device) -> list[Finding]:
    """Join the process group that the launcher describes. One finding that is bad where that fails."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return [Finding("ok", "ranks", "one process: torchrun ... -m erw.cli doctor tries the others")]
    backend = "nccl" if device.type == "cuda" else "gloo"
    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    try:
        dist.init_process_group(backend, timeout=_PATIENCE, device_id=device if backend == "nccl" else None)
        dist.barrier()
    except (RuntimeError, ValueError) as error:
        first = str(error).strip().splitlines()[0][:160]
        mend = f"can every machine reach {where}? firewall, MASTER_ADDR, {backend.upper()}_SOCKET_IFNAME"
        return [Finding("bad", "ranks", f"rank {os.environ.get('RANK')} of {count} does not meet the others: {first}", mend)]
    return [_alike(), _speed(device, backend)]


def gather(findings: list[Finding]) -> list[list[Finding]]:
    """The findings of every rank, on every rank; alone, one's own."""
    if not dist.is_initialized():
        return [findings]
    found: list = [None] * dist.get_world_size()
    dist.all_gather_object(found, findings)
    return found


def _alike() -> Finding:
    own = (socket.gethostname(), {package: version(package) for package in _ALIKE})
    every: list = [None] * dist.get_world_size()
    dist.all_gather_object(every, own)
    hosts = list(dict.fromkeys(host for host, _ in every))
    for package in _ALIKE:
        different = {versions[package]: host for host, versions in every}
        if len(different) > 1:
            text = ", ".join(f"{package} {have} on {host}" for have, host in different.items())
            return Finding("bad", "ranks", text, "install the same versions on every machine")
    return Finding("ok", "ranks", f"{len(every)} ranks on {len(hosts)} machine{'s' * (len(hosts) > 1)}: {', '.join(hosts[:8])}")


def _speed(device: torch.device, backend: str) -> Finding:
    """An all-reduce's rate as each GPU's traffic, and what a small one takes."""
    count = dist.get_world_size()
    large, small = torch.ones(_BYTES // 4, device=device), torch.ones(1, device=device)
    for tensor in (large, small):
        dist.all_reduce(tensor)
    seconds = _seconds(lambda: dist.all_reduce(large), 3, device)
    latency = _seconds(lambda: dist.all_reduce(small), 20, device)
    rate = 2 * (count - 1) / count * _BYTES / seconds
    text = f"all-reduce of {_BYTES >> 20} MiB {rate / 1e9:.2f} GB/s a rank, a small one {latency * 1e6:.0f} us"
    slow = backend == "nccl" and rate < 1e9
    mend = "NCCL goes over plain sockets: check NCCL_SOCKET_IFNAME and InfiniBand (NCCL_DEBUG=INFO)"
    return Finding("warn" if slow else "ok", backend, text, mend if slow else "")


def _seconds(call, times: int, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begun = time.perf_counter()
    for _ in range(times):
        call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - begun) / times
