"""Versions, processor, accelerator, memory and limits of this machine."""

import os
import platform
import re
import resource
import shutil
from pathlib import Path

import torch

from erw.devices import device_called
from erw.doctor.checks import Finding
from erw.environment import cpu_model, version

# The oldest that the tests have seen; setup.py has the same.
FLOOR = {"torch": (2, 11), "triton": (3, 6), "deepspeed": (0, 19, 8)}
_PYTHON = (3, 11)
_OPTIONAL = ("timm", "diffusers", "torchvision", "wandb", "prometheus_client")


def versions() -> list[Finding]:
    """What is installed, against the floor."""
    too_old = []
    for package, least in FLOOR.items():
        have = version(package)
        if have is None or tuple(map(int, re.findall(r"\d+", have)[: len(least)])) < least:
            too_old.append(f"{package} {have or 'is missing'}, {'.'.join(map(str, least))} or later is needed")
    python = platform.python_version_tuple()
    if tuple(map(int, python[:2])) < _PYTHON:
        too_old.append(f"Python {platform.python_version()}, 3.11 or later is needed")
    text = ", ".join(f"{p} {version(p)}" for p in ("erw", *FLOOR, *_OPTIONAL) if version(p))
    text = f"Python {platform.python_version()}, {text}"
    if too_old:
        return [Finding("bad", "versions", "; ".join(too_old), "install from requirements.lock")]
    return [Finding("ok", "versions", text)]


def accelerator() -> Finding:
    """The GPU that this process would use."""
    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi"):
            mend = "check nvidia-smi, CUDA_VISIBLE_DEVICES and that torch is a CUDA build"
            return Finding("bad", "GPU", "a driver is installed, but torch sees no device", mend)
        return Finding("ok", "GPU", "none: this machine trains on its CPU")
    own, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if own >= count:
        return Finding("bad", "GPU", f"local rank {own} of {count} GPUs", "start one process a GPU: --nproc-per-node")
    free, total = torch.cuda.mem_get_info(own)
    name = torch.cuda.get_device_name(own)
    text = f"{count} x {name}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free, CUDA {torch.version.cuda}"
    if free < 0.9 * total:
        return Finding("warn", "GPU", text, "something else uses it: see nvidia-smi")
    if device_called(name) is None:
        return Finding("ok", "GPU", f"{text}; its peak is not known, so runs show no MFU")
    return Finding("ok", "GPU", text)


def processor() -> Finding:
    """Cores, and threads that each process starts."""
    cores, threads = len(os.sched_getaffinity(0)), torch.get_num_threads()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    text = f"{cpu_model()}, {cores} cores, {local} x {threads} threads"
    if local * threads > cores:
        return Finding("warn", "CPU", text, f"more threads than cores: set OMP_NUM_THREADS={max(1, cores // local)}")
    return Finding("ok", "CPU", text)


def limits() -> list[Finding]:
    """Memory for loader processes, and open files."""
    found = []
    shared = shutil.disk_usage("/dev/shm") if Path("/dev/shm").is_dir() else None
    if shared is not None:
        text = f"/dev/shm {shared.free / 2**30:.1f} GiB free"
        small = shared.free < 2**30
        mend = "loader processes (--data.workers) need it; in a container --shm-size 16g or --ipc host"
        found.append(Finding("warn" if small else "ok", "shared memory", text, mend if small else ""))
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    few = files < 4096
    found.append(Finding("warn" if few else "ok", "open files", f"limit {files:,}", "ulimit -n 65536" if few else ""))
    return found


def compiler() -> Finding:
    """torch.compile on a CPU, and Triton's launchers, are built by a C compiler."""
    name = next((c for c in (os.environ.get("CC"), "gcc", "clang", "cc") if c and shutil.which(c)), None)
    if name is None:
        text = "no C compiler: kernels (--engine.ops fused) and --engine.compile blocks cannot be built"
        return Finding("bad" if torch.cuda.is_available() else "warn", "compiler", text, "install gcc")
    return Finding("ok", "compiler", name)


def secrets() -> Finding:
    """Which credentials the environment has, never what they are."""
    names = [n for n in ("HF_TOKEN", "WANDB_API_KEY", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY") if os.environ.get(n)]
    offline = [f"{n}=1" for n in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(n) == "1"]
    return Finding(
        "ok", "environment", ", ".join([f"{n} is set" for n in names] + offline) or "no tokens set, hubs not offline"
    )
