"""Full fp32 tensors in and out of sharded optimizer state, by parameter name.

For each ZeRO stage: ``get`` assembles a full tensor (a collective: every rank calls it, in the same order), ``set`` cuts
this rank's part out of one. Keys are ``weights`` (fp32 masters) and those of `erw.optim.STATE_KEYS`.
"""

from typing import Protocol

import torch
import torch.distributed as dist
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_get_local_fp32_param,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from erw.optim import WEIGHTS, AdamWEMA


class Shards(Protocol):
    """Access to one engine's state."""

    def owned(self) -> list[Tensor]:
        """The tensors of this rank that the optimizer steps; their state holds moments, EMA and step count."""
        ...

    def link(self) -> None:
        """Make new state visible to `get` and `set`."""
        ...

    def get(self, parameter: nn.Parameter, key: str) -> Tensor:
        """The full fp32 tensor on every rank."""
        ...

    def set(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        """Overwrite it with ``value``, full, fp32."""
        ...


class WholeShards:
    """Stage 0: parameters are the fp32 masters, on every rank."""

    def __init__(self, optimizer: AdamWEMA):
        self.optimizer = optimizer

    def owned(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def link(self) -> None:
        pass

    def _tensor(self, parameter: nn.Parameter, key: str) -> Tensor:
        return parameter.data if key == WEIGHTS else self.optimizer.state[parameter][key]

    def get(self, parameter: nn.Parameter, key: str) -> Tensor:
        return self._tensor(parameter, key).clone()

    def set(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        self._tensor(parameter, key).copy_(value)


class _ZeroShards:
    """What the ZeRO stages share: DeepSpeed assembles full tensors at each of them."""

    def __init__(self, zero):
        self.zero = zero

    def get(self, parameter: nn.Parameter, key: str) -> Tensor:
        if key == WEIGHTS:
            return safe_get_full_fp32_param(parameter)
        return safe_get_full_optimizer_state(parameter, key)


class FlatShards(_ZeroShards):
    """Stages 1 and 2: each rank owns a slice of one flat fp32 tensor per parameter group."""

    def owned(self) -> list[Tensor]:
        return list(self.zero.single_partition_of_fp32_groups)

    def link(self) -> None:
        # DeepSpeed links state after the first group's step only; a second group would stay invisible.
        self.zero._hp_optimizer_states_linked = False
        self.zero._lazy_init_hp_params_optimizer_state()

    def set(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        value = value.to(parameter.device)
        if key == WEIGHTS:
            safe_set_full_fp32_param(parameter, value)
            parameter.data.copy_(value)
        else:
            safe_set_full_optimizer_state(parameter, value, key)


class PartitionedShards(_ZeroShards):
    """Stage 3: each rank owns a slice of every parameter, padded to equal length."""

    def owned(self) -> list[Tensor]:
        return list(self.zero.fp32_partitioned_groups_flat)

    def link(self) -> None:
        pass

    def _slice(self, parameter: nn.Parameter, value: Tensor) -> Tensor:
        # DeepSpeed's own full setter fails where the ranks do not divide the number of elements.
        length = parameter.ds_tensor.numel()
        padded = torch.zeros(length * dist.get_world_size(), dtype=value.dtype, device=parameter.ds_tensor.device)
        padded[: value.numel()] = value.flatten().to(padded.device)
        return padded[length * dist.get_rank() :][:length]

    def set(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        local = self._slice(parameter, value)
        if key != WEIGHTS:
            safe_set_local_optimizer_state(parameter, local, key)
            return
        safe_set_local_fp32_param(parameter, local)
        parameter.ds_tensor.data.copy_(safe_get_local_fp32_param(parameter).view_as(parameter.ds_tensor))
        if parameter.data.numel() == value.numel():  # kept whole between steps: small parameters are
            parameter.data.copy_(value.view_as(parameter.data))


def shards_of(stage: int, zero, optimizer: AdamWEMA) -> Shards:
    """Access to the state of a DeepSpeed optimizer ``zero`` of this stage."""
    if stage == 0:
        return WholeShards(optimizer)
    return FlatShards(zero) if stage < 3 else PartitionedShards(zero)
