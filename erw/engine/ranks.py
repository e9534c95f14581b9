"""Starting and leaving the process group, under plain python, torchrun and the deepspeed launcher alike."""

import logging
import os
import socket
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """Where this process stands."""

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this rank writes files and speaks."""
        return self.rank == 0

    def mean(self, rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Means of 0-d device tensors over ``rows`` (micro-batches) and ranks, fp32. A collective; the host does not wait."""
        names = list(rows[0])
        means = torch.stack([torch.stack([row[name].detach().float() for row in rows]).mean() for name in names])
        if self.count > 1:
            dist.all_reduce(means)
            means /= self.count
        return dict(zip(names, means.unbind(), strict=True))

    def agree(self, value: str) -> str:
        """The first rank's ``value``, on every rank. A collective."""
        values = [value]
        if self.count > 1:
            dist.broadcast_object_list(values, src=0, device=self.device)
        return values[0]

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.count > 1:
            dist.barrier()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_ranks() -> Ranks:
    """Join the process group that the launcher describes, or a group of one: NCCL on GPUs, gloo on CPUs."""
    cuda = torch.cuda.is_available()
    if not cuda:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if "RANK" not in os.environ:
        alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        os.environ.update({**alone, "MASTER_PORT": str(_free_port())})
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    elif not dist.is_initialized():
        # On a CPU DeepSpeed would spend most of a minute compiling a shared-memory all-reduce. gloo does without.
        deepspeed.ops.__compatible_ops__ = {}
    deepspeed.init_distributed("nccl" if cuda else "gloo", auto_mpi_discovery=False, verbose=False)
    return Ranks(dist.get_rank(), dist.get_world_size(), device)


def stop_ranks() -> None:
    """Leave the group in order: a stage-3 process that just exits sometimes aborts."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
