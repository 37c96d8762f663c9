"""This process among the processes of the job.

It reads what torchrun and deepspeed put into the environment (`cluster/environment.py` puts it there for srun), and
makes a group of one where it is not there, so that everything above runs the same on one process and on many. It
starts no process itself.
"""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from cpt_dist.config import EngineConfig
from cpt_dist.engine.host_memory import keep_freed_memory


@dataclass(frozen=True)
class World:
    """Rank and size of the job, and the device that this rank computes on."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this rank writes what is written once for the whole job."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of `values` (any shape) over all ranks, on every rank."""
        total = values.detach().clone().to(self.device)
        dist.all_reduce(total)
        return total

    def gather(self, value: object) -> list:
        """The objects of all ranks, in their order, on every rank."""
        gathered: list = [None] * self.size
        dist.all_gather_object(gathered, value)
        return gathered

    def barrier(self) -> None:
        """Wait until every rank is here."""
        dist.barrier()


def start(config: EngineConfig) -> World:
    """Join the job's process group (gloo on CPUs, nccl on GPUs) and set this rank's device and threads."""
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", size)))
    if torch.cuda.is_available():
        # A task of srun that was given one GPU sees that one alone, whatever its number on the node.
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    else:
        device, backend = torch.device("cpu"), "gloo"
        # Ranks that share cores and take all of them each are slower together than alone.
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(config.threads or max(1, cores // local_size))
        keep_freed_memory()
    if not dist.is_initialized():
        timeout = datetime.timedelta(seconds=config.timeout_seconds)
        # DeepSpeed and device meshes make groups of their own with torch's default of half an hour, which has no
        # public setter: without this a rank that dies in the start or a step would be waited for that long.
        for name in ("default_pg_timeout", "default_pg_nccl_timeout"):
            setattr(distributed_c10d, name, timeout)
        if size == 1:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
        else:
            dist.init_process_group(backend, timeout=timeout)
    return World(rank, size, local_rank, local_size, device)


def stop() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()
