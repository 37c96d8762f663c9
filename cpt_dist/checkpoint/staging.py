"""Copies of this rank's tensors in host memory, so that training can go on while they are written.

The buffers are made once, by a thread while training goes on, and used by every save, pinned where the tensors are on
a GPU. Each sharded tensor becomes a `FlatShard`: what FSDP keeps along the first axis and what ZeRO keeps of a
flattened parameter are both contiguous slices of it.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import threading
from dataclasses import dataclass

import psutil
import torch
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from cpt_dist.checkpoint.local_part import local_part
from cpt_dist.engine.flat_shard import FlatShard

_SPARE_SHARE = 0.9
"""Of the free memory of a host that its ranks may take for buffers."""


@dataclass(frozen=True)
class _Kind:
    """What a buffer is like."""

    shape: torch.Size
    dtype: torch.dtype
    pinned: bool

    @classmethod
    def of(cls, local: torch.Tensor) -> _Kind:
        return cls(local.shape, local.dtype, local.is_cuda)


class Staging:
    """The host buffers of one rank; `local_size` ranks share the host's memory."""

    def __init__(self, local_size: int = 1) -> None:
        self._local_size = local_size
        self._buffers: dict[str, torch.Tensor] = {}
        self._making: threading.Thread | None = None

    def make_behind(self, tensors: dict[str, torch.Tensor]) -> None:
        """Begin to make the buffers for `tensors`; the first copy would otherwise wait for their memory to be found."""
        # Not the tensors: an engine may have made them for this call.
        wanted = {name: _Kind.of(local_part(tensor)) for name, tensor in tensors.items()}

        def make() -> None:
            with contextlib.suppress(RuntimeError, MemoryError):
                for name, kind in wanted.items():
                    _touch(self._buffer(name, kind))

        # No daemon: a thread in torch's code must not be left when the interpreter ends.
        self._making = threading.Thread(target=make, name="staging")
        self._making.start()

    def wait(self) -> None:
        """Return when no buffers are being made. Those that could not be made are made by the next copy."""
        if self._making is not None:
            self._making.join()
            self._making = None

    def fits(self, tensors: dict[str, torch.Tensor]) -> bool:
        """Whether the buffers for `tensors` are there already, or free memory for those of all ranks of the host."""
        self.wait()
        missing = sum(
            local_part(tensor).nbytes
            for name, tensor in tensors.items()
            if name not in self._buffers or self._buffers[name].numel() != local_part(tensor).numel()
        )
        return missing * self._local_size <= _SPARE_SHARE * psutil.virtual_memory().available

    def copy(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`tensors` with their values of now, in host memory; valid until the next call."""
        self.wait()
        copies = {name: self._copied(name, tensor) for name, tensor in tensors.items()}
        if any(local_part(tensor).is_cuda for tensor in tensors.values()):
            torch.cuda.synchronize()
        return copies

    def _copied(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        local = local_part(tensor)
        buffer = self._buffer(name, _Kind.of(local))
        buffer.copy_(local, non_blocking=True)
        if isinstance(tensor, FlatShard):
            return FlatShard(buffer, tuple(tensor.shape), tensor.start)
        if isinstance(tensor, DTensor):
            return FlatShard(buffer.view(-1), tuple(tensor.shape), _first_element(tensor))
        return buffer

    def _buffer(self, name: str, kind: _Kind) -> torch.Tensor:
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != kind.shape or buffer.dtype != kind.dtype:
            buffer = self._buffers[name] = torch.empty(kind.shape, dtype=kind.dtype, pin_memory=kind.pinned)
        return buffer


def _touch(buffer: torch.Tensor) -> None:
    """Write into each page of a buffer, since memory is only found when it is written to."""
    buffer.view(-1).view(torch.uint8).numpy()[:: mmap.PAGESIZE] = 0


def _first_element(tensor: DTensor) -> int:
    """Index, in the flattened tensor, of the first element that this rank has."""
    if any(not isinstance(p, Replicate) and not (isinstance(p, Shard) and p.dim == 0) for p in tensor.placements):
        raise ValueError(f"a tensor sharded as {tensor.placements} is no slice along its first axis")
    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return min(offset[0] * math.prod(tensor.shape[1:]), tensor.numel()) if offset else 0
