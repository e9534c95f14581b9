"""Fine-tuning: a new run that starts with another model's EMA weights (``--train.init_from``).

Model weights alone are taken: optimizer, EMA and image count begin anew. A weight is taken where name and shape fit, so
classes, resolution, channels and depth may differ; what was not taken is said.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from erw.checkpoint import locate, read_meta, read_tensors
from erw.config import RunConfig, TrainConfig, config_from_dict
from erw.errors import UserError
from erw.models.sit import SiT, SiTConfig
from erw.objectives import Objective
from erw.public import convention_of, read_public

_POSITIONS = "pos_embed"  # follows from the resolution; never taken
_FINAL = ("final_layer.linear.weight", "final_layer.linear.bias")


@dataclass(frozen=True)
class Source:
    """A model to start from: its shape, what it predicts, and its EMA, fp32 on the CPU by public name."""

    model: SiTConfig
    objective: Objective
    weights: dict[str, Tensor]


@dataclass(frozen=True)
class Start:
    """Weights for a new run by public name, each of the shape that the run's model has, and one line about them."""

    weights: dict[str, Tensor]
    report: str


def pinned(train: RunConfig) -> Path | None:
    """The checkpoint or the file that ``--train.init_from`` means now: a run's newest checkpoint may be another later.

    None where the run starts from its seed. Raises `UserError` where there is nothing to start from.
    """
    if train.init_from == "none":
        return None
    path = Path(train.init_from)
    if not path.exists():
        raise UserError(f"--train.init_from '{path}' does not exist")
    if path.is_file():
        if train.init_convention == "none":
            raise UserError(f"--train.init_from {path} is a file: say whose with --train.init_convention sit, dit or repa")
        convention_of(train.init_convention)
        return path.resolve()
    if train.init_convention != "none":
        raise UserError(f"--train.init_convention is for .pt files, --train.init_from {path} is a folder: leave it out")
    return locate(path).resolve()


def require(path: Path) -> None:
    """Raise `UserError` where what `pinned` once found is gone."""
    if not path.exists():
        raise UserError(f"--train.init_from: {path}, where this run started from, is needed for its next phase: put it back")


def read_start(config: TrainConfig, path: Path) -> Start:
    """What the run of ``config`` takes from ``path`` (see `pinned`).

    Raises `UserError` where the file is bad, or objective, width or attention heads are others.
    """
    require(path)
    source = _read(config, path)
    _check_same_meaning(config, source, path)
    places = _places(config)
    taken = _fitted(source, config.model, places)
    return Start(taken, _report(config, source, taken, places))


def _read(config: TrainConfig, path: Path) -> Source:
    if path.is_file():
        public = read_public(path, config.train.init_convention, config.model.num_heads)
        return Source(public.config, public.objective, public.weights)
    trained = config_from_dict(read_meta(path).config)
    return Source(trained.model, trained.objective, read_tensors(path, "ema"))


def _check_same_meaning(config: TrainConfig, source: Source, path: Path) -> None:
    """Raise `UserError` where the networks compute different things, though shapes may fit, or nothing can fit."""
    pairs = [("objective.name", source.objective.name, config.objective.name)]
    kinds = [getattr(objective, "interpolant", None) for objective in (source.objective, config.objective)]
    pairs += [("objective.interpolant", *kinds)]
    pairs += [(f"model.{name}", getattr(source.model, name), getattr(config.model, name)) for name in ("width", "num_heads")]
    for name, theirs, ours in pairs:
        if theirs != ours:
            raise UserError(f"--train.init_from {path} was trained with --{name} {theirs}, this run has {ours}: give the same")


def _places(config: TrainConfig) -> dict[str, torch.Size]:
    """Shapes of all trained weights, heads included, of the run's last phase: no earlier one has others."""
    with torch.device("meta"):
        parts = SiT(config.model), config.method.build_heads(config.model, config.teacher_specs)
    return {name: parameter.shape for part in parts for name, parameter in part.named_parameters()}


def _fitted(source: Source, model: SiTConfig, places: dict[str, torch.Size]) -> dict[str, Tensor]:
    """The source's weights that have a place of their shape."""
    weights = source.weights
    if (source.model.in_channels, source.model.patch_size) != (model.in_channels, model.patch_size):
        # Rows of other patches and channels, even where there happen to be as many.
        weights = {name: value for name, value in weights.items() if name not in _FINAL}
    elif source.model.learn_sigma and not model.learn_sigma:
        halves = {name: _first_half(weights[name], model.in_channels) for name in _FINAL if name in weights}
        weights = weights | halves
    return {name: value for name, value in weights.items() if places.get(name) == value.shape}


def _first_half(weight: Tensor, channels: int) -> Tensor:
    """Rows of the velocity or noise, (P * P * C, ...), out of the final layer's (P * P * 2C, ...): channels innermost."""
    return weight.unflatten(0, (-1, 2 * channels))[:, :channels].flatten(0, 1)


def _report(config: TrainConfig, source: Source, taken: dict[str, Tensor], places: dict[str, torch.Size]) -> str:
    left = [name for name in source.weights if name not in taken and name != _POSITIONS]
    misfits, homeless = [n for n in left if n in places], [n for n in left if n not in places]
    not_loaded = [f"{name} (other shape)" for name in _grouped(misfits, source.weights)]
    not_loaded += [f"{name} (no place for it)" for name in _grouped(homeless, source.weights)]
    absent = _grouped([name for name in places if name not in source.weights], places)
    text = f"init_from {config.train.init_from}: {len(taken)} weights loaded"
    text += f"; not loaded: {', '.join(not_loaded)}" if not_loaded else ""
    text += f"; not in the source: {', '.join(absent)}" if absent else ""
    if source.model.learn_sigma and not config.model.learn_sigma and _FINAL[0] in taken:
        text += f"; of final_layer.linear the first {config.model.in_channels} channels of {source.model.out_channels}"
    if source.model.rope != config.model.rope:
        text += f"; --model.rope {source.model.rope} there, {config.model.rope} here"
    return text


def _grouped(names: list[str], among: dict) -> list[str]:
    """``names`` in few words: blocks and projectors that are in it with all their weights ``among`` as ``blocks.3.*``, the
    same weight of several blocks once, as ``blocks.*.attn.q_norm.weight``."""
    chosen, short = set(names), []
    for name in names:
        group = re.match(r"(blocks|projectors)\.\d+\.", name)
        if group and all(other in chosen for other in among if other.startswith(group[0])):
            short.append(f"{group[0]}*")
        else:
            short.append(re.sub(r"^blocks\.\d+\.", "blocks.*.", name))
    return list(dict.fromkeys(short))
