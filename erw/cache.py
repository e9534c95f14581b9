"""Small networks that are trained on the spot, kept on disk so that each machine trains them once.

A file is named by what it holds and by a hash of everything that decides its weights; a change of either is another
file, and no file is ever stale.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from erw.errors import UserError
from erw.files import whole

Weights = dict[str, Tensor]
Facts = dict[str, Any]

_SCHEMA = 1


class _Damaged(Exception):
    """A cache file that does not hold what its name says."""


def cache_folder() -> Path:
    """``$ERW_CACHE``, or ``~/.cache/erw`` where that is unset or empty."""
    return Path(os.environ.get("ERW_CACHE") or "~/.cache/erw").expanduser()


def cached_weights(name: str, fingerprint: dict[str, Any], build: Callable[[], tuple[Weights, Facts]]) -> tuple[Weights, Facts]:
    """Tensors (on the CPU) and facts about them (JSON values) that ``build`` returned, now or in an earlier process.

    ``fingerprint`` (JSON values) must hold all that decides the weights but torch's version, which is added here. Of
    several processes one builds and the others wait. A damaged file is built again, with a line on stderr that says so.
    Raises `UserError` where the cache folder cannot be used.
    """
    key = _key(name, fingerprint)
    path = cache_folder() / f"{name}-{key[:16]}.safetensors"
    with contextlib.suppress(FileNotFoundError, _Damaged):
        return _read(path, key)
    with _locked(path):
        return _read_or_build(name, path, key, build)


def source_digest(*files: str) -> str:
    """SHA-256 of source files: in a fingerprint, an edited trainer never meets the weights of the old one."""
    return hashlib.sha256(b"\0".join(Path(file).read_bytes() for file in files)).hexdigest()


@contextlib.contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Make training inside depend on ``seed`` alone, not on the caller's modes, and leave the caller's state as it was.

    One thread, because the number of threads changes the order of sums, torchrun sets another number than a shell, and
    a second one gains little on networks this small and loses much where cores are shared.
    """
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float32)
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            torch.device("cpu"),
            torch.random.fork_rng(devices=[]),
        ):
            # torch.manual_seed would reseed CUDA too, which fork_rng(devices=[]) does not restore.
            torch.default_generator.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)


def _key(name: str, fingerprint: dict[str, Any]) -> str:
    whole = {"name": name, "schema": _SCHEMA, "torch": torch.__version__, "fingerprint": fingerprint}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def digest(weights: Weights) -> str:
    """SHA-256 over names, shapes, dtypes and bytes, in the names' order."""
    total = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        total.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def _read(path: Path, key: str) -> tuple[Weights, Facts]:
    """Raises FileNotFoundError, `_Damaged`, or `UserError` where the system does not let us look."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _unusable(path.parent, error) from None
    except SafetensorError as error:
        raise _Damaged(f"not a whole safetensors file ({error})") from None
    if metadata.get("key") != key:
        raise _Damaged("not written by this cache")
    if metadata.get("digest") != digest(weights):
        raise _Damaged("its checksum is wrong")
    return weights, json.loads(metadata["facts"])


def _read_or_build(name: str, path: Path, key: str, build: Callable[[], tuple[Weights, Facts]]) -> tuple[Weights, Facts]:
    """What is at ``path`` by now, or else what ``build`` gives; the caller holds the lock."""
    try:
        return _read(path, key)
    except FileNotFoundError:
        print(f"erw: training {name}, once, to be kept in {path}", file=sys.stderr, flush=True)
    except _Damaged as damage:
        print(f"erw: {path}: {damage}; training {name} again", file=sys.stderr, flush=True)
    _write(path, key, *build())
    return _read(path, key)


def _write(path: Path, key: str, weights: Weights, facts: Facts) -> None:
    """Whole or not at all: readers do not take the lock."""
    weights = {name: tensor.contiguous() for name, tensor in weights.items()}
    metadata = {"key": key, "digest": digest(weights), "facts": json.dumps(facts)}
    try:
        with whole(path) as file:
            file.write(save(weights, metadata))
    except OSError as error:
        raise _unusable(path.parent, error) from None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock beside ``path``; the kernel releases it if this process dies."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path.with_suffix(".lock"), "wb")  # noqa: SIM115  (closed below, where errors are not the folder's)
    except OSError as error:
        raise _unusable(path.parent, error) from None
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _unusable(folder: Path, error: OSError) -> UserError:
    return UserError(f"cache {folder}: {error.strerror or error}: set ERW_CACHE to a folder that can be read and written")
