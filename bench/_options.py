"""Options that every benchmark of a GPU has, and where it runs."""

import argparse

import torch

from erw.bench._record import RESULTS
from erw.errors import UserError


def parser_of(module: str, doc: str, *, minutes: float) -> argparse.ArgumentParser:
    """``--minutes --out --commit --dry-run`` for ``python -m erw.bench.<module>``, whose docstring is ``doc``."""
    parser = argparse.ArgumentParser(prog=f"python -m erw.bench.{module}", description=doc.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=minutes, help=f"begin nothing after this (default {minutes:g})")
    parser.add_argument("--out", default=str(RESULTS), help="folder of the record (default bench/results)")
    parser.add_argument("--commit", help="commit to write down where this tree carries no git data")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, on a CPU too: tries the command, measures nothing")
    return parser


def device_for(module: str, dry_run: bool, asked: str | None = None) -> torch.device:
    """The CUDA device, or the CPU where that is ``asked`` for; in a dry run what is here. Raises `UserError` without one."""
    if asked != "cpu" and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if asked != "cpu" and not dry_run:
        raise UserError(f"erw.bench.{module} needs a CUDA device; --dry-run tries the command on what is here")
    return torch.device("cpu")


def named(option: str, text: str, known: dict | list | tuple) -> list[str]:
    """The names in ``text`` (commas between; empty: all). Raises `UserError` for one that is not ``known``."""
    from erw.settings import nearest

    names = list(filter(None, text.split(",")))
    for name in names:
        if name not in known:
            raise UserError(f"{option}: '{name}' is not known; {nearest(name, known)}")
    return names or list(known)


def numbers(option: str, text: str) -> list[int]:
    """Whole numbers from 1 up in ``text``, with commas between. Raises `UserError` for anything else."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option} takes whole numbers with commas between, not '{text}'") from None
    if min(found) < 1:
        raise UserError(f"{option} must be at least 1, not {min(found)}")
    return found
