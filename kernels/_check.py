"""Arguments that do not fit are refused by name, before anything is launched."""

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def check_shape(name: str, tensor: Tensor, shape: tuple[int | None, ...], letters: str) -> None:
    """Raise ValueError unless ``tensor`` has ``shape`` (None: any length); ``letters`` are its dimensions' names."""
    fits = tensor.dim() == len(shape) and all(want in (None, have) for want, have in zip(shape, tensor.shape, strict=True))
    if not fits:
        wanted = ", ".join(letter if want is None else str(want) for want, letter in zip(shape, letters.split(), strict=True))
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, should be ({letters.replace(' ', ', ')}) = ({wanted})")


def check_floats(**tensors: Tensor) -> None:
    """Raise ValueError unless every tensor is fp32, bf16 or fp16 and on the device of the first one."""
    (first, reference), *_ = tensors.items()
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            raise ValueError(f"{name} is {tensor.dtype}, should be torch.float32, torch.bfloat16 or torch.float16")
        if tensor.device != reference.device:
            raise ValueError(f"{name} is on {tensor.device}, should be on {reference.device} as {first} is")


def unit_last(name: str, tensor: Tensor) -> Tensor:
    """``tensor`` (..., D) whose last dimension is dense, as the kernels read it; raises ValueError for an expanded one."""
    if tensor.stride(-1) == 0 and tensor.shape[-1] > 1:
        raise ValueError(f"{name} has stride 0 in its last dimension, should hold its own elements: call .contiguous()")
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def dense_samples(tensor: Tensor) -> Tensor:
    """``tensor`` (B, ...) each of whose samples lies dense, wherever it begins, as the kernels read it."""
    expected = 1
    for length, stride in zip(reversed(tensor.shape[1:]), reversed(tensor.stride()[1:]), strict=True):
        if length != 1 and stride != expected:
            return tensor.contiguous()
        expected *= length
    return tensor


def dense(tensor: Tensor) -> bool:
    """Whether the elements of ``tensor`` fill one stretch of memory, in whatever order."""
    return tensor.is_contiguous() or torch.empty_like(tensor, device="meta").stride() == tensor.stride()
