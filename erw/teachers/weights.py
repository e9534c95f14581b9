"""Files of an encoder's weights, as the papers' code and timm write them, read without running code from them."""

import pickle
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from erw.errors import UserError

# Under these keys training code keeps the network among other things; MoCo v3, DINO and others add prefixes of their wrappers.
_CONTAINERS = ("state_dict", "model", "teacher", "target_encoder", "encoder")
_WRAPPERS, _PARTS = ("module.", "_orig_mod."), ("base_encoder.", "backbone.")
# MoCo v3's files call the norms and layers of blocks 13 and 14 norm13, fc13 and so on in place of norm1 and fc1, norm2 and fc2.
_MISNAMED = re.compile(r"^blocks\.(13|14)\.(norm|mlp\.fc)\1\.")


def read_weights(name: str, path: Path) -> dict[str, Tensor]:
    """Tensors of the network in ``path`` (safetensors, or torch's format with tensors only) by its own names, no classifier.

    Raises `UserError`, which names the teacher ``name``, for a file that cannot be read or holds no network.
    """
    try:
        found = load_file(path) if path.suffix == ".safetensors" else _torch_file(path)
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        first = (str(error).strip() or repr(error)).splitlines()[0][:160]
        raise UserError(
            f"--teacher.file of {name}: {path} cannot be read ({first}): a .safetensors file, or torch's with tensors only"
        ) from None
    while isinstance(found, dict) and (inner := next((found[k] for k in _CONTAINERS if isinstance(found.get(k), dict)), None)):
        found = inner
    tensors = {k: v for k, v in found.items() if isinstance(v, Tensor)} if isinstance(found, dict) else {}
    if not tensors:
        raise UserError(f"--teacher.file of {name}: {path} holds no network's tensors")
    return {_named(k): v for k, v in _unwrapped(tensors).items() if not k.startswith(("head.", "fc."))}


def _torch_file(path: Path) -> object:
    return torch.load(path, map_location="cpu", weights_only=True)


def _unwrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _WRAPPERS:
        if all(k.startswith(prefix) for k in tensors):
            tensors = {k.removeprefix(prefix): v for k, v in tensors.items()}
    for prefix in _PARTS:
        if any(k.startswith(prefix) for k in tensors):
            tensors = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    return tensors


def _named(key: str) -> str:
    return _MISNAMED.sub(lambda m: f"blocks.{m[1]}.{m[2]}{int(m[1]) - 12}.", key)
