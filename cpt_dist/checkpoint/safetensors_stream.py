"""The layout of safetensors files that are written in parts.

The library's own writer wants all tensors of a file in memory. The format (8 bytes of header length, a JSON header,
the raw little-endian data in the header's order) can be laid out once shapes and types are known, and then each
tensor has its place, whoever writes it. No tensor is written here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from cpt_dist.checkpoint.element_types import ElementType


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and type of a tensor to be written."""

    name: str
    shape: tuple[int, ...]
    dtype: ElementType

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor's data."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class FileLayout:
    """A safetensors file: its name and its tensors in the order in which they lie in it."""

    name: str
    specs: tuple[TensorSpec, ...]

    @cached_property
    def header(self) -> bytes:
        """Everything before the data, padded so that the data is aligned to 8 bytes."""
        entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for spec in self.specs:
            end = offset + spec.num_bytes
            entries[spec.name] = {"dtype": spec.dtype.code, "shape": list(spec.shape), "data_offsets": [offset, end]}
            offset = end
        encoded = json.dumps(entries, separators=(",", ":")).encode()
        encoded += b" " * (-len(encoded) % 8)
        return len(encoded).to_bytes(8, "little") + encoded

    @cached_property
    def offsets(self) -> list[int]:
        """The byte of the file at which each tensor starts, and last the file's length."""
        places = [len(self.header)]
        for spec in self.specs:
            places.append(places[-1] + spec.num_bytes)
        return places


def lay_out(specs: Iterable[TensorSpec], max_bytes: int) -> list[FileLayout]:
    """Spread tensors, in their order, over files of at most `max_bytes` of data with Hugging Face's names.

    A tensor that is larger than that has a file of its own. One file is model.safetensors.
    """
    files: list[list[TensorSpec]] = []
    size = 0
    for spec in specs:
        if not files or size + spec.num_bytes > max_bytes:
            files.append([])
            size = 0
        files[-1].append(spec)
        size += spec.num_bytes
    if len(files) == 1:
        return [FileLayout("model.safetensors", tuple(files[0]))]
    return [
        FileLayout(f"model-{number:05d}-of-{len(files):05d}.safetensors", tuple(part))
        for number, part in enumerate(files, start=1)
    ]
