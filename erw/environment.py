"""Where a run or a measurement was made: device, versions, commit. All plain JSON types."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

_ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = ("torch", "triton", "deepspeed", "timm", "numpy")


def fingerprint(device: torch.device, commit: str | None = None) -> dict:
    """What a reader needs to judge a number. ``commit`` is used where this tree has no git data of its own."""
    found, dirty = git_state()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device_name(device),
        "device_memory_gib": _memory_gib(device),
        "driver": _driver() if device.type == "cuda" else None,
        "cuda": torch.version.cuda,
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES},
        "commit": found or commit,
        "dirty": dirty,
    }


def device_name(device: torch.device) -> str:
    """The accelerator's name, or the processor's."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model()


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def version(package: str) -> str | None:
    """Installed version, None where it is missing."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_state() -> tuple[str | None, bool | None]:
    """(short commit, whether files other than benchmark records differ from it); None twice outside a checkout."""
    top = _run("git", "-C", str(_ROOT), "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != _ROOT:
        return None, None
    commit = _run("git", "-C", str(_ROOT), "rev-parse", "--short=9", "HEAD")
    changed = _run("git", "-C", str(_ROOT), "status", "--porcelain", "--", ".", ":!bench/results")
    return commit, None if changed is None else bool(changed)


def _memory_gib(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    return round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1)


def _driver() -> str | None:
    answer = _run("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return answer.splitlines()[0] if answer else None


def _run(*command: str) -> str | None:
    """Standard output of ``command``; None where it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
