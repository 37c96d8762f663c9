"""Writing a safetensors file one tensor at a time.

The library's own writer wants all tensors of a file in memory. The format (8 bytes of header length, a JSON header,
the raw little-endian data in the header's order) can be written as a stream once shapes and types are known.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from cpt_dist.files import atomic_write

_CODES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and type of a tensor to be written."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor's data."""
        return math.prod(self.shape) * self.dtype.itemsize


def split_into_files(specs: Iterable[TensorSpec], max_bytes: int) -> list[list[TensorSpec]]:
    """Cut a list of tensors into runs of at most `max_bytes`; a tensor larger than that has a file of its own."""
    files: list[list[TensorSpec]] = []
    size = 0
    for spec in specs:
        if not files or size + spec.num_bytes > max_bytes:
            files.append([])
            size = 0
        files[-1].append(spec)
        size += spec.num_bytes
    return files


def write_stream(path: Path, specs: list[TensorSpec], tensors: Iterable[torch.Tensor]) -> None:
    """Write `tensors`, which come one by one in the order of `specs`, into a safetensors file, atomically.

    Raises ValueError where a tensor is not what its spec says.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for spec in specs:
        end = offset + spec.num_bytes
        header[spec.name] = {"dtype": _CODES[spec.dtype], "shape": list(spec.shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with atomic_write(path) as handle:
        handle.write(len(encoded).to_bytes(8, "little") + encoded)
        for spec, tensor in zip(specs, tensors, strict=True):
            if tuple(tensor.shape) != spec.shape or tensor.dtype != spec.dtype:
                raise ValueError(f"{spec.name}: {tuple(tensor.shape)} {tensor.dtype} is not {spec}")
            if spec.num_bytes:
                handle.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
