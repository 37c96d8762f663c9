"""Copies of this rank's tensors in host memory, so that training can go on while they are written.

The buffers are made once and used by every save, pinned where the tensors are on a GPU. Each sharded tensor becomes
a `FlatShard`: what FSDP keeps along the first axis and what ZeRO keeps of a flattened parameter are both contiguous
slices of it.
"""

from __future__ import annotations

import math

import psutil
import torch
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from cpt_dist.checkpoint.local_part import local_part
from cpt_dist.engine.flat_shard import FlatShard

_SPARE_SHARE = 0.9
"""Of the free memory of a host that its ranks may take for buffers."""


class Staging:
    """The host buffers of one rank; `local_size` ranks share the host's memory."""

    def __init__(self, local_size: int = 1) -> None:
        self._local_size = local_size
        self._buffers: dict[str, torch.Tensor] = {}

    def fits(self, tensors: dict[str, torch.Tensor]) -> bool:
        """Whether the buffers for `tensors` are there already, or free memory for those of all ranks of the host."""
        missing = sum(
            local_part(tensor).nbytes
            for name, tensor in tensors.items()
            if name not in self._buffers or self._buffers[name].numel() != local_part(tensor).numel()
        )
        return missing * self._local_size <= _SPARE_SHARE * psutil.virtual_memory().available

    def copy(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`tensors` with their values of now, in host memory; valid until the next call."""
        copies = {name: self._copied(name, tensor) for name, tensor in tensors.items()}
        if any(local_part(tensor).is_cuda for tensor in tensors.values()):
            torch.cuda.synchronize()
        return copies

    def _copied(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        local = local_part(tensor)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != local.shape or buffer.dtype != local.dtype:
            buffer = self._buffers[name] = torch.empty(local.shape, dtype=local.dtype, pin_memory=local.is_cuda)
        buffer.copy_(local, non_blocking=True)
        if isinstance(tensor, FlatShard):
            return FlatShard(buffer, tuple(tensor.shape), tensor.start)
        if isinstance(tensor, DTensor):
            return FlatShard(buffer.view(-1), tuple(tensor.shape), _first_element(tensor))
        return buffer


def _first_element(tensor: DTensor) -> int:
    """Index, in the flattened tensor, of the first element that this rank has."""
    if any(not isinstance(p, Replicate) and not (isinstance(p, Shard) and p.dim == 0) for p in tensor.placements):
        raise ValueError(f"a tensor sharded as {tensor.placements} is no slice along its first axis")
    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return min(offset[0] * math.prod(tensor.shape[1:]), tensor.numel()) if offset else 0
