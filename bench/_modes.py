"""One differentiable function as three functions to time, and what it keeps in between."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

MODES = ("forward", "backward", "both")
Inputs = dict[str, Tensor]


def leaves(inputs: Inputs, grads: Iterable[str]) -> Inputs:
    """``inputs``, of which ``grads`` have gradients."""
    return {name: value.detach().requires_grad_(name in grads) for name, value in inputs.items()}


def modes(op: Callable, grads: tuple[str, ...], inputs: Inputs, options: dict) -> dict[str, Callable[[], object]]:
    """forward; and backward (of a forward done before) and both, where there are gradients."""
    given = leaves(inputs, grads)
    wanted = [given[name] for name in grads]

    def forward() -> tuple:
        returned = op(**given, **options)
        return returned if isinstance(returned, tuple) else (returned,)

    if not wanted:
        return {"forward": forward}
    outputs = [out for out in forward() if out.requires_grad]
    gradients = [torch.randn_like(out) for out in outputs]

    def both() -> object:
        return torch.autograd.grad([out for out in forward() if out.requires_grad], wanted, gradients)

    return {
        "forward": forward,
        "backward": lambda: torch.autograd.grad(outputs, wanted, gradients, retain_graph=True),
        "both": both,
    }


def kept_bytes(op: Callable, grads: tuple[str, ...], inputs: Inputs) -> int:
    """Bytes that ``op`` keeps from its forward for its backward, each storage once; its inputs and weights are not counted."""
    given = leaves(inputs, grads)
    own = {value.untyped_storage().data_ptr() for value in given.values()}
    kept: dict[int, Tensor] = {}  # alive while counting: a freed storage's address may be given again

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = op(**given)  # noqa: F841  (alive while counting)
    return sum(tensor.untyped_storage().nbytes() for pointer, tensor in kept.items() if pointer not in own)
