"""Checkpoints of the SiT, DiT and REPA repositories: read into ours, and turned back into theirs.

What such a file means is in ``CONVENTIONS``. Where that differs from ours, the difference is put into the weights, once
(`_turned`): a converted model is like any of ours, and nothing else in the product knows of conventions.
"""

import argparse
import math
import pickle
import re
import warnings
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from erw.errors import UserError
from erw.models.embed import TimestepEmbedder, sincos_table
from erw.models.sit import SIZES, SiT, SiTConfig
from erw.objectives import Ddpm, Flow, Objective
from erw.objectives.flow import Interpolant
from erw.samplers import SampleConfig
from erw.settings import nearest


@dataclass(frozen=True, kw_only=True)
class Convention:
    """What a public file's weights mean. Ours: data at t = 0, noise at t = 1 (DDPM: step 999), velocity d x_t / dt.

    objective    what the network predicts, but for the two points below
    data_at_one  whether time runs the other way, from noise at t = 0 to data at t = 1
    sign         the network's output is this times our target
    learn_sigma  whether it gives twice the channels (SiT: the second half is unused)
    sample       how its papers sample, and on how many channels their guidance acts
    projectors   whether there may be REPA's heads, ``projectors.*``
    paths        interpolants by the name that training checkpoints give them in their ``args``
    prediction   the name there of a network that predicts what `objective` says
    """

    objective: Objective
    data_at_one: bool = False
    sign: int = 1
    learn_sigma: bool
    sample: SampleConfig
    projectors: bool = False
    paths: dict[str, Interpolant] = field(default_factory=dict)
    prediction: str = ""


CONVENTIONS = {
    "sit": Convention(
        objective=Flow(),
        data_at_one=True,
        sign=-1,
        learn_sigma=True,
        sample=SampleConfig(sampler="sde", steps=250, guidance_channels=3),
        paths={"Linear": "linear", "GVP": "cosine"},
        prediction="velocity",
    ),
    "dit": Convention(
        objective=Ddpm(),
        learn_sigma=True,
        sample=SampleConfig(sampler="ddpm", steps=250, guidance_channels=3),
    ),
    "repa": Convention(
        objective=Flow(),
        learn_sigma=False,
        sample=SampleConfig(sampler="sde", steps=250, diffusion="linear"),
        projectors=True,
        paths={"linear": "linear", "cosine": "cosine"},
        prediction="v",
    ),
}

_HEADS = {(depth, width): heads for depth, width, heads in SIZES.values()}
_PROJECTOR = re.compile(r"projectors\.\d+\.[024]\.(weight|bias)")
# What the model's shape is read from, and the number of dimensions each has.
_TELLING = {
    "x_embedder.proj.weight": 4,
    "pos_embed": 3,
    "y_embedder.embedding_table.weight": 2,
    "blocks.0.mlp.fc1.weight": 2,
    "final_layer.linear.weight": 2,
}
_TABLE_TOLERANCE = 1e-5


@dataclass(frozen=True, kw_only=True)
class Public:
    """A public model as one of ours. ``weights``: fp32 CPU tensors by name, position table (and projectors) too."""

    config: SiTConfig
    objective: Objective
    sample: SampleConfig
    weights: dict[str, Tensor]


def convention_of(name: str) -> Convention:
    """The entry of ``CONVENTIONS``. Raises `UserError` for an unknown name."""
    if name not in CONVENTIONS:
        raise UserError(f"convention '{name}' is not known; {nearest(name, CONVENTIONS)}")
    return CONVENTIONS[name]


def read_public(path: Path, convention: str, num_heads: int | None = None) -> Public:
    """The model in the .pt file ``path``, whose weights mean what ``convention`` says: the EMA where the file has one.

    ``num_heads`` is needed for sizes that were not published, since no shape tells it. Raises `UserError` for a file that
    is not there, is no file of tensors, would run code, or holds another network than the convention says.
    """
    meaning = convention_of(convention)
    held = _load(path)
    weights = _state_dict(path, held)
    config = _config(path, weights, convention, num_heads)
    check_layout(path, weights, config, meaning.projectors)
    objective = _objective(path, held.get("args"), convention)
    turned = _turned({name: value.float() for name, value in weights.items()}, meaning)
    return Public(config=config, objective=objective, sample=meaning.sample, weights=turned)


def to_public(weights: dict[str, Tensor], convention: str) -> dict[str, Tensor]:
    """The inverse of `read_public` for weights, fp32 by name; projectors are dropped where the convention has none.

    Equal to what was read but for one rounding of the first time layer.
    """
    meaning = convention_of(convention)
    kept = {name: w for name, w in weights.items() if meaning.projectors or not name.startswith("projectors.")}
    return _turned(kept, meaning)


def _turned(weights: dict[str, Tensor], meaning: Convention) -> dict[str, Tensor]:
    """``weights`` (fp32) from ``meaning`` to ours, or from ours to it: each change is its own inverse.

    With ours f(x, t) and theirs g(x, t), f(x, t) = sign * g(x, 1 - t) where their data lie at t = 1. The sign goes into the
    last layer, the reflection of time into the first layer that sees time.
    """
    weights = dict(weights)
    if meaning.sign < 0:
        for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
            weights[name] = -weights[name]
    if meaning.data_at_one:
        weights["t_embedder.mlp.0.weight"] = _reflected(weights["t_embedder.mlp.0.weight"])
    return weights


def _reflected(weight: Tensor) -> Tensor:
    """The first time layer (D, 256), fp32, of a network that shall be given t and read it as 1 - t.

    Its input is (cos w t, sin w t) for 128 frequencies w, and of 1 - t each pair is a reflection of that of t:
    cos w(1 - t) = cos w cos wt + sin w sin wt and sin w(1 - t) = sin w cos wt - cos w sin wt. So the layer is multiplied by
    the reflections from the right, in fp64, and rounded once.
    """
    half = TimestepEmbedder.FREQUENCIES // 2
    # In fp32 at first, as TimestepEmbedder computes them.
    w = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32) / half).double()
    of_cosines, of_sines = weight.double().split(half, dim=1)
    return torch.cat([of_cosines * w.cos() + of_sines * w.sin(), of_cosines * w.sin() - of_sines * w.cos()], dim=1).float()


def _load(path: Path) -> dict[Any, Any]:
    """What torch.save wrote, without running any code of the file."""
    if not path.is_file():
        raise UserError(f"'{path}' {'is a folder, not a .pt file' if path.is_dir() else 'does not exist'}")
    try:
        # Training checkpoints hold their options as a Namespace, a class that only carries values.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Optimizer moments are then not even read. Files of torch before 1.6 are no zip archives.
            held = torch.load(path, weights_only=True, map_location="cpu", mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged file makes torch raise almost anything
        named = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if named:
            raise UserError(
                f"{path} was refused, nothing in it was run: besides tensors it asks for {named[1]}, and so could run code;"
                " where you trust its source, save its state dict alone with torch.save and give that"
            ) from None
        raise UserError(f"{path} is not a whole file of torch.save ({type(error).__name__}): get it again") from None
    if not isinstance(held, dict):
        raise UserError(f"{path} holds a {type(held).__name__}, not a dict of tensors: save its state dict")
    return held


def _state_dict(path: Path, held: dict[Any, Any]) -> dict[str, Tensor]:
    """The EMA in ``held``, or the model, or the dict itself; without DistributedDataParallel's prefix."""
    found = next((held[entry] for entry in ("ema", "model") if isinstance(held.get(entry), dict)), held)
    for name, value in found.items():
        numbers = isinstance(value, Tensor) and value.is_floating_point() and value.layout == torch.strided and value.numel()
        if not isinstance(name, str) or not numbers:
            raise UserError(f"{path}: '{name}' is no tensor of weights: give a state dict, or a dict with one under 'ema'")
    if all(name.startswith("module.") for name in found):
        found = {name.removeprefix("module."): value for name, value in found.items()}
    return found


def _config(path: Path, weights: dict[str, Tensor], convention: str, num_heads: int | None) -> SiTConfig:
    """The model's shape, as far as ``weights`` tell it; `check_layout` says whether all of them agree."""
    absent = [name for name in _TELLING if name not in weights]
    if absent:
        raise _layout_error(path, absent, [name for name in weights if name not in _TELLING])
    for name, dims in _TELLING.items():
        if weights[name].dim() != dims:
            raise UserError(f"{path}: {name} has shape {tuple(weights[name].shape)}, not {dims} dimensions")
    width, channels, patch, _ = weights["x_embedder.proj.weight"].shape
    blocks = {name.split(".")[1] for name in weights if name.startswith("blocks.")}
    config = SiTConfig(
        depth=len(blocks),
        width=width,
        num_heads=_heads(path, len(blocks), width, num_heads),
        patch_size=patch,
        input_size=math.isqrt(weights["pos_embed"].shape[1]) * patch,
        in_channels=channels,
        num_classes=weights["y_embedder.embedding_table.weight"].shape[0] - 1,
        mlp_ratio=weights["blocks.0.mlp.fc1.weight"].shape[0] / width,
        qk_norm="blocks.0.attn.q_norm.weight" in weights,
        learn_sigma=CONVENTIONS[convention].learn_sigma,
    )
    given = weights["final_layer.linear.weight"].shape[0] // patch**2
    if given != config.out_channels and given in (channels, 2 * channels):
        fitting = [name for name, c in CONVENTIONS.items() if c.learn_sigma == (given > channels)]
        raise UserError(
            f"{path} gives {given} channels for {channels}, convention {convention} gives {config.out_channels}: it may be"
            f" {' or '.join(fitting)}"
        )
    return config


def _heads(path: Path, depth: int, width: int, num_heads: int | None) -> int:
    """Attention heads: the published ones for a published size, else ``num_heads``."""
    known = _HEADS.get((depth, width), num_heads)
    if known is None:
        raise UserError(
            f"{path} has {depth} blocks of width {width}, no published size, and does not tell its attention heads: say them"
            " with --num-heads"
        )
    if num_heads not in (None, known):
        raise UserError(f"num_heads {num_heads} is not right for {path}: {depth} blocks of width {width} have {known}")
    return known


def check_layout(path: Path, weights: dict[str, Tensor], config: SiTConfig, projectors: bool) -> None:
    """Raise `UserError` unless names, shapes and the position table are exactly those of our model; there may be heads
    beside it where there may be ``projectors``."""
    with torch.device("meta"):
        expected = {name: value.shape for name, value in SiT(config).state_dict().items()}
    heads = {name for name in weights if projectors and _PROJECTOR.fullmatch(name)}
    missing = [name for name in expected if name not in weights]
    unexpected = [name for name in weights if name not in expected and name not in heads]
    if missing or unexpected:
        raise _layout_error(path, missing, unexpected)
    for name, shape in expected.items():
        if weights[name].shape != shape:
            raise UserError(f"{path}: {name} has shape {tuple(weights[name].shape)}, its other weights ask for {tuple(shape)}")
    gap = (weights["pos_embed"].float() - sincos_table(config.grid, config.width)).abs().max()
    if not gap <= _TABLE_TOLERANCE:
        raise UserError(f"{path}: its pos_embed is not the fixed sine-cosine table (off by {gap:.2g}): erw has no other")


def _layout_error(path: Path, missing: list[str], unexpected: list[str]) -> UserError:
    """One line that names the first three of each."""

    def listed(names: list[str]) -> str:
        return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else "none"

    return UserError(f"{path} is not laid out as such a model is; missing: {listed(missing)}; unexpected: {listed(unexpected)}")


def _objective(path: Path, args: Any, convention: str) -> Objective:
    """The convention's objective; where the file holds its training's options, with the interpolant that they name."""
    meaning = CONVENTIONS[convention]
    kind, prediction = getattr(args, "path_type", None), getattr(args, "prediction", None)
    wrong = kind is not None and kind not in [*meaning.paths]
    if wrong or prediction not in (None, meaning.prediction):
        has = f"{' or '.join(meaning.paths)}, and {meaning.prediction}" if meaning.paths else "neither option"
        raise UserError(
            f"{path} was trained with path_type {kind}, prediction {prediction}; convention {convention} has {has}: it is"
            " another one, or erw cannot use such a model"
        )
    return meaning.objective if kind is None else replace(meaning.objective, interpolant=meaning.paths[kind])
