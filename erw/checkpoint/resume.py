"""Which checkpoint a run goes on from, and whether it is one of the same run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from erw.checkpoint.layout import KEYS, Meta, fault, found
from erw.checkpoint.write import set_aside
from erw.config import config_from_dict
from erw.engine.ranks import Ranks
from erw.errors import UserError
from erw.settings import to_dict


def newest_sound(folder: Path) -> tuple[Path | None, list[str]]:
    """(newest checkpoint below ``folder`` whose every byte is as written, None without any; a line for each damaged one).

    Newer ones that are damaged are renamed ``.corrupt-...`` and kept. Raises `UserError`, and renames nothing, where all are
    damaged: to begin anew is not for us to choose.
    """
    damaged: list[tuple[Path, str]] = []
    for checkpoint in reversed(found(folder)):
        wrong = fault(checkpoint)
        if wrong is None:
            lines = [f"WARNING: {why}: kept as {set_aside(bad).name}; going on from {checkpoint}" for bad, why in damaged]
            return checkpoint, lines
        damaged.append((checkpoint, wrong))
    if damaged:
        raise UserError(
            f"every checkpoint below {folder} is damaged ({'; '.join(why for _, why in damaged)}): put a good one there, or"
            " start anew with another --train.out"
        )
    return None, []


def agreed(ranks: Ranks, find: Callable[[], tuple[Path | None, list[str]]]) -> tuple[Path | None, list[str]]:
    """What ``find`` gives on the first rank, on every rank; so is the `UserError` that it raises. A collective."""
    answer: dict[str, Any] = {}
    if ranks.first:
        try:
            path, lines = find()
            answer = {"path": path and str(path), "lines": lines}
        except UserError as error:
            answer = {"error": str(error)}
    answer = json.loads(ranks.agree(json.dumps(answer)))
    if "error" in answer:
        raise UserError(answer["error"])
    return answer["path"] and Path(answer["path"]), answer["lines"]


def check_resumable(checkpoint: Path) -> None:
    """Raise `UserError` where ``checkpoint`` holds weights alone."""
    if not all((checkpoint / f"{key}.safetensors").exists() for key in KEYS):
        raise UserError(
            f"{checkpoint} holds no optimizer state, so no run can go on from it: start one with --train.init_from"
            f" {checkpoint} and another --train.out"
        )


def check_same_run(meta: Meta, config: dict[str, Any], checkpoint: Path) -> None:
    """Raise `UserError` where ``config`` would not continue the run in ``checkpoint``.

    Settings that are younger than the checkpoint had their defaults in it.
    """
    written = to_dict(config_from_dict(meta.config))
    fixed = ["model", "method", "objective", "optim", "latents", "teacher", "data"]
    pairs = [(f"{s}.{k}", written[s].get(k), v) for s in fixed for k, v in config[s].items()]
    of_train = ("batch", "seed", "init_from", "init_convention")
    pairs += [(f"train.{k}", written["train"][k], config["train"][k]) for k in of_train]
    pairs += [("engine.precision", written["engine"]["precision"], config["engine"]["precision"])]
    free = {
        "data.path", "data.workers", "data.ahead", "data.cache", "data.cache_gb",
        "teacher.file", "teacher.compile",
    }  # fmt: skip
    for name, before, now in pairs:
        same = list(before) == list(now) if isinstance(now, tuple) else before == now
        if not same and name not in free:
            raise UserError(
                f"{checkpoint} was written with --{name} {before}, this run has {now}: give the same, or start a new"
                f" run with another --train.out (and --train.init_from {checkpoint} for its weights)"
            )
