"""ZeRO-1 and 2 from a backward to the next forward, in fewer passes over gradients and weights than DeepSpeed makes."""

import torch
from deepspeed.runtime.utils import all_gather_dp_groups
from torch import Tensor

from erw.optim import AdamWEMA


def step_flat(zero, optimizer: AdamWEMA, ranks: int) -> None:
    """Give DeepSpeed's ``zero``, of stage 1 or 2, a step of our own, where ``optimizer`` clips and skips by itself.

    DeepSpeed copies gradients from bucket to bucket, widens them to fp32, and rounds the new masters in a pass of its own.
    `AdamWEMA` takes them as they come, and writes masters and rounded weights at once. A rank that is alone has nobody to
    reduce with: its gradients stay where the backward left them.
    """
    zero.step = FlatStep(zero, optimizer, alone=ranks == 1)
    if ranks == 1:
        # Where DeepSpeed takes each gradient, with ``overlap_comm`` and without, and where it ends a backward.
        zero.process_gradients = zero.reduce_ready_partitions_and_remove_grads = lambda parameter, group: None
        zero.independent_gradient_partition_epilogue = lambda: None


class FlatStep:
    """Called as DeepSpeed's own step is, after the last backward of a step."""

    def __init__(self, zero, optimizer: AdamWEMA, alone: bool):
        self.zero, self.optimizer, self.alone = zero, optimizer, alone
        rank = torch.distributed.get_rank()
        self.weights: list[Tensor] = [parts[rank] for parts in zero.parallel_partitioned_bit16_groups]
        optimizer.halves = dict(zip(zero.single_partition_of_fp32_groups, self.weights, strict=True))

    def __call__(self, closure=None) -> None:
        zero = self.zero
        for group, weight in enumerate(self.weights):
            weight.grad = self._gradient(group)
        self.optimizer.step()
        for weight in self.weights:
            weight.grad = None
        all_gather_dp_groups(
            groups_flat=zero.bit16_groups_flat,
            partitioned_param_groups=zero.parallel_partitioned_bit16_groups,
            dp_process_group=zero.real_dp_process_group,
            start_alignment_factor=zero.nccl_start_alignment_factor,
            allgather_bucket_size=zero.allgather_bucket_size,
        )

    def _gradient(self, group: int) -> Tensor:
        """Of this rank's part of the weights: one tensor in their order. What it was made of is freed."""
        zero = self.zero
        if self.alone:
            zero.all_grad_tensors[group] = zero.get_all_grad_tensors(zero.params_in_partition[group], zero.dtype)
            zero.finalize_gradient_accumulation_boundary()
        flat = torch.cat([part.reshape(-1) for part in zero.averaged_gradients[group]])
        zero.averaged_gradients[group] = zero.all_grad_tensors[group] = None
        zero.free_grad_in_param_list(zero.bit16_groups[group])
        return flat
