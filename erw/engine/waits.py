"""Where DeepSpeed makes the host wait for the device in every step, and need not."""

from collections.abc import Callable

from deepspeed.accelerator import get_accelerator


def order_streams(zero) -> None:
    """Let streams wait for each other at the end of a backward of ZeRO-1 or 2, where DeepSpeed stops the host.

    With ``overlap_comm`` gradients are reduced on a stream of their own. Before DeepSpeed reads them, and frees what they
    were reduced in, it waits for the whole device. What it needs is an order: the compute stream goes on after the
    reductions, the reductions after what was computed. Nothing changes without such a stream (CPUs, ``overlap_comm``
    false), nor with offload, whose gradients the host itself reads.
    """
    if not zero.overlap_comm or zero.reduction_stream is None or zero.cpu_offload:
        return
    accelerator, epilogue = get_accelerator(), zero.independent_gradient_partition_epilogue

    def both_ways(device_index: int | None = None) -> None:
        compute, reduction = accelerator.current_stream(), zero.reduction_stream
        compute.wait_stream(reduction)
        reduction.wait_stream(compute)

    def ordered() -> None:
        _instead(accelerator, "synchronize", both_ways, epilogue)

    zero.independent_gradient_partition_epilogue = ordered


def _instead(owner: object, name: str, function: Callable, call: Callable[[], None]) -> None:
    """``call()`` while ``owner.name`` is ``function``."""
    setattr(owner, name, function)
    try:
        call()
    finally:
        delattr(owner, name)  # the class has its own
