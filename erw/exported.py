"""A trained model as a folder to hand on: ``erw export`` writes it, ``erw import`` makes a run of it again, bit for bit.

    FOLDER/model.safetensors    weights by public name, projectors and position table too; fp32, or bf16 but for the table
           config.json          format, images, settings, accounts, size and SHA-256 of the weights
           README.md            the model card (`erw.card`)

Settings that name places on the machine that trained keep the last part of each path.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from erw import __version__
from erw.card import Licences, model_card
from erw.checkpoint import Meta, read_tensors, sha256
from erw.config import TrainConfig, config_from_dict
from erw.convert import check_free, write_run
from erw.errors import UserError
from erw.public import check_layout
from erw.report.records import read_records
from erw.report.rows import read_object, read_rows
from erw.sample.load import read_run
from erw.settings import to_dict

FORMAT, VERSION = "erw-export", 1
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_WEIGHTS = "model.safetensors"
_TABLE = "pos_embed"  # follows from the model's shape; rounded it would be another


@dataclass(frozen=True, kw_only=True)
class Export:
    """What an exported folder holds: ``weights`` fp32 by public name, and what its config.json says."""

    meta: Meta
    config: TrainConfig
    weights: dict[str, Tensor]


def write_export(run: Path, out: Path, *, dtype: str = "fp32", weights: str = "ema", licences: Licences | None = None) -> None:
    """Write the newest checkpoint of a run, or a checkpoint, as the folder ``out``, whole or not at all.

    ``dtype``: fp32 or bf16; ``weights``: ema, or the raw ``weights``. Raises `UserError` for a checkpoint out of a warm-up,
    a damaged one, and an ``out`` that is there.
    """
    if out.exists():
        raise UserError(f"--out {out} exists: name another folder")
    config, meta, checkpoint = read_run(run)
    licences = (licences or Licences()).checked(config)
    tensors = {
        name: tensor.to(torch.float32 if name == _TABLE else DTYPES[dtype]).contiguous()
        for name, tensor in read_tensors(checkpoint, weights).items()
    }
    config = _without_places(config)
    described = {
        "format": FORMAT, "version": VERSION, "erw": __version__, "weights": weights, "dtype": dtype,
        "images": meta.images, "phase": meta.phase, "steps": meta.steps, "accounts": meta.accounts, "config": to_dict(config),
    }  # fmt: skip
    run_folder = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else None
    card = model_card(
        config, described, tensors, licences,
        evals=read_rows(run_folder / "evals.jsonl")[0] if run_folder else [],
        judged=[j for j in read_records(run_folder) if j.images == meta.images] if run_folder else [],
        device=str((read_object(run_folder / "accounts.json") or {}).get("device", "") if run_folder else ""),
        name=out.resolve().name,
    )  # fmt: skip
    with _written_whole(out) as folder:
        file = folder / _WEIGHTS
        save_file(tensors, file, metadata={"format": "pt"})
        described["files"] = {_WEIGHTS: {"bytes": file.stat().st_size, "sha256": sha256(file)}}
        (folder / "config.json").write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(card, encoding="utf-8")
        shutil.copymode(folder / "README.md", file)  # safetensors lets nobody else read its files


def import_export(folder: Path, out: Path) -> Path:
    """Write the run folder ``out`` with one checkpoint out of an exported folder: weights and EMA alike, no moments.

    Returns the checkpoint. Raises `UserError` as `read_export` does, and where ``out`` holds a run.
    """
    check_free(out)
    held = read_export(folder)
    return write_run(out, held.meta, held.weights)


def read_export(folder: Path) -> Export:
    """Raises `UserError` for a folder that ``erw export`` did not write, and for one that is damaged or was changed."""
    described = _described(folder)
    file = folder / _WEIGHTS
    try:
        expected = described["files"][_WEIGHTS]
        if file.stat().st_size != expected["bytes"] or sha256(file) != expected["sha256"]:
            raise UserError(f"{file} does not match its checksum: get it again")
        config = config_from_dict(described["config"])
        meta = Meta(
            images=described["images"], phase=described["phase"], steps=described["steps"], config=to_dict(config),
            accounts=described["accounts"], init_from=str(folder.resolve()),
        )  # fmt: skip
        weights = {name: tensor.float() for name, tensor in load_file(file).items()}
    except FileNotFoundError:
        raise UserError(f"{file} is missing: get it again") from None
    except SafetensorError as error:
        raise UserError(f"{file} cannot be read ({error}): get it again") from None
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / 'config.json'} is not whole ({error!r}): get it again") from None
    check_layout(file, weights, config.model, projectors=True)
    return Export(meta=meta, config=config, weights=weights)


def _described(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise UserError(f"'{folder}' {'is a file, not a folder of erw export' if folder.exists() else 'does not exist'}")
    described = read_object(folder / "config.json") or {}
    if described.get("format") != FORMAT:
        run = (folder / "checkpoints").is_dir()
        raise UserError(f"'{folder}' is {'a run already: use it as it is' if run else 'no folder that erw export wrote'}")
    if described.get("version") != VERSION:
        raise UserError(f"{folder} has version {described.get('version')} of the format, this erw reads {VERSION}")
    return described


def _without_places(config: TrainConfig) -> TrainConfig:
    """The settings without the folders of the machine that trained."""
    train, data, evaluation = config.train, config.data, config.eval
    named = {name: Path(getattr(train, name)).name for name in ("out", "resume", "init_from")}
    data, evaluation = replace(data, path=Path(data.path).name), replace(evaluation, reference=Path(evaluation.reference).name)
    return replace(config, train=replace(train, **named), data=data, eval=evaluation)


@contextlib.contextmanager
def _written_whole(out: Path) -> Iterator[Path]:
    """A folder to write into, which then becomes ``out``; after an error there is neither."""
    partial = out.with_name(f".partial-{out.name}")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        os.rename(partial, out)
    except (OSError, SafetensorError) as error:
        raise UserError(f"--out {out} cannot be written: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
