"""Starting and leaving the process group, under plain python, torchrun and the deepspeed launcher alike."""

import contextlib
import logging
import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from erw.engine.talk import Talk
from erw.engine.voices import tag_rank
from erw.errors import RankLost

# Ranks that share work meet at its end only, which one may reach hours before another.
_PATIENCE = timedelta(days=2)

talk = Talk()
"""This process's time in collectives, on CPUs."""


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

    def each(self, value: float) -> Tensor:
        """(count,) fp32 on the device: the ``value`` of every rank. A collective; the host does not wait."""
        values = torch.zeros(self.count, dtype=torch.float32, device=self.device)
        values[self.rank].fill_(value)
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def agree(self, value: str) -> str:
        """The first rank's ``value``, on every rank. A collective."""
        values = [value]
        if self.count > 1:
            dist.broadcast_object_list(values, src=0, device=self.device)
        return values[0]

    def collect(self, part: Tensor | None, senders: int) -> list[Tensor]:
        """On the first rank the ``part`` of each of the first ``senders`` ranks, in order, on the CPU; [] elsewhere.

        Parts have one shape and dtype. Ranks beyond the senders give None and do nothing.
        """
        if not self.first:
            if self.rank < senders:
                dist.send(part.contiguous(), 0)
            return []
        parts = [part.cpu()]
        for other in range(1, senders):
            buffer = part.new_empty(part.shape)
            dist.recv(buffer, other)
            parts.append(buffer.cpu())
        return parts

    def be_patient(self) -> None:
        """From now on a collective waits for days: for where something else sees, sooner, whether a rank is lost."""
        if self.count > 1:
            module = dist.distributed_c10d
            # Its name in torch 2.14, and before.
            change = module.set_timeout if hasattr(module, "set_timeout") else module._set_pg_timeout
            change(_PATIENCE, dist.group.WORLD)

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.count > 1:
            dist.barrier()


def _own_device() -> torch.device:
    """This process's GPU, made current, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def join_ranks() -> Ranks:
    """For work that is only shared out: the process group that torchrun describes, without DeepSpeed; alone, no group."""
    device = _own_device()
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Ranks(0, 1, device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    return Ranks(dist.get_rank(), dist.get_world_size(), device)


def start_ranks(timeout: float = 1800.0) -> Ranks:
    """Join the process group that the launcher describes, or a group of one: NCCL on GPUs, gloo on CPUs.

    Raises `RankLost` where the ranks have not all met within ``timeout`` seconds.
    """
    cuda = torch.cuda.is_available()
    if not cuda:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if "RANK" not in os.environ:
        # Port 0: whichever is free, for nobody else has to know it.
        alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
        os.environ.update(alone)
    device = _own_device()
    if not cuda and not dist.is_initialized():
        # On a CPU DeepSpeed would spend most of a minute compiling a shared-memory all-reduce. gloo does without.
        deepspeed.ops.__compatible_ops__ = {}
        talk.listen()  # before DeepSpeed takes hold of them
    # The first rank waits for the others once; torch's client tries to reach the first one for twice as long as it is told.
    patience = timeout if os.environ["RANK"] == "0" else timeout / 2
    try:
        deepspeed.init_distributed("nccl" if cuda else "gloo", auto_mpi_discovery=False, verbose=False,
                                   timeout=timedelta(seconds=patience))  # fmt: skip
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise RankLost(f"the ranks did not all meet within {timeout:g} s ({reason}): start the job again") from error
    if dist.get_world_size() > 1:
        tag_rank(dist.get_rank())
    return Ranks(dist.get_rank(), dist.get_world_size(), device)


def stop_ranks() -> None:
    """Leave the group in order: a stage-3 process that just exits sometimes aborts."""
    if dist.is_initialized():
        with contextlib.suppress(RuntimeError):  # of a rank that has gone without waiting, which has said why
            dist.barrier()
        dist.destroy_process_group()
