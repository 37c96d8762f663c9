"""A contiguous slice of a flattened parameter, as PyTorch's distributed checkpoint (DCP) sees it.

ZeRO ranks own slices of flattened parameters, DCP stores axis-aligned boxes. A flat slice of an n-dimensional
tensor is at most 2n-1 boxes, so DCP can write and read it as ordinary chunks, and any other engine at any world size
can read the result. It holds no data of its own beyond the slice and computes nothing.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

Box = tuple[tuple[int, ...], tuple[int, ...], int]


def flat_boxes(shape: tuple[int, ...], start: int, stop: int) -> list[Box]:
    """The boxes (offsets, sizes, flat start) that tile the flat range [start, stop) of a C-contiguous tensor.

    They are disjoint, in the order of their flat start, contiguous in the flat tensor, and at most
    2 * len(shape) - 1 in number. Raises ValueError where the range leaves the tensor.
    """
    if not 0 <= start <= stop <= math.prod(shape):
        raise ValueError(f"range [{start}, {stop}) leaves a tensor of shape {shape}")
    boxes: list[Box] = []

    def cover(prefix: tuple[int, ...], axes: tuple[int, ...], low: int, high: int, base: int) -> None:
        if low >= high:
            return
        ones = (1,) * len(prefix)
        if len(axes) == 1:
            boxes.append(((*prefix, low), (*ones, high - low), base + low))
            return
        stride = math.prod(axes[1:])
        first, into_first = divmod(low, stride)
        last, into_last = divmod(high, stride)
        if first == last:
            cover((*prefix, first), axes[1:], into_first, into_last, base + first * stride)
            return
        if into_first:
            cover((*prefix, first), axes[1:], into_first, stride, base + first * stride)
            first += 1
        if last > first:
            offsets = (*prefix, first, *(0,) * (len(axes) - 1))
            boxes.append((offsets, (*ones, last - first, *axes[1:]), base + first * stride))
        if into_last:
            cover((*prefix, last), axes[1:], 0, into_last, base + last * stride)

    if shape:
        cover((), tuple(shape), start, stop, 0)
    elif stop > start:
        boxes.append(((), (), 0))
    return boxes


class FlatShard(torch.Tensor):
    """`local` [n], elements [start, start + n) of a flattened tensor of `shape`.

    DCP writes its boxes, and on a load fills `local` in place. No operation but these is defined on it.
    """

    local: torch.Tensor
    start: int
    boxes: list[Box]

    @staticmethod
    def __new__(cls, local: torch.Tensor, shape: tuple[int, ...], start: int) -> FlatShard:
        self = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=local.dtype, device=local.device)
        self.local, self.start = local, start
        self.boxes = flat_boxes(tuple(shape), start, start + local.numel())
        return self

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        if func is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(f"{func} on a FlatShard; take .local")

    def __create_write_items__(self, fqn: str, obj: Any) -> list[WriteItem]:
        properties = TensorProperties.create_from_tensor(self.local)
        size = torch.Size(self.shape)
        return [
            WriteItem(
                index=MetadataIndex(fqn, chunk.offsets, number),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk=chunk, properties=properties, size=size),
            )
            for number, chunk in enumerate(self.__create_chunk_list__())
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)) for offsets, sizes, _ in self.boxes]

    def __get_tensor_shard__(self, index: MetadataIndex) -> torch.Tensor:
        for offsets, sizes, flat_start in self.boxes:
            if tuple(index.offset or ()) == offsets:
                begin = flat_start - self.start
                return self.local[begin : begin + math.prod(sizes)].view(sizes)
        raise KeyError(index)
