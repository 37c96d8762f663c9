"""A whole tensor as the pieces of it that lie in files, read in the order of its elements.

It is how consolidation and imports see every format: a name, a shape, and pieces at places in files. Values are read
in small blocks, so that memory doesn't depend on the size of the tensor. Nothing is written here.
"""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np

from cpt_dist.checkpoint.element_types import ElementType
from cpt_dist.checkpoint.torch_file import StoredTensor, read_torch_file
from cpt_dist.errors import UserError

BLOCK_BYTES = 1 << 18
"""About what fits into a core's cache: values are read, converted, checked and written while they are in it."""

_MOST_OPEN = 64
"""Files of a checkpoint of many ranks that are open at a time."""


@dataclass(frozen=True)
class Piece:
    """The box `sizes` at `offsets` of a tensor, stored C-contiguously in a file."""

    path: Path
    offset: int
    """Byte of the file at which its elements start, or at which a file of torch.save starts inside it."""
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    item_bytes: int | None = None
    """Length of the file of torch.save that holds the piece (as in DCP); None where `offset` is that of the values."""

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.sizes)

    def located(self, dtype: ElementType) -> int:
        """The byte of the file at which its first element is. Raises UserError where the file holds something else."""
        if self.item_bytes is None:
            return self.offset
        stored = read_torch_file(self.path, self.offset, self.item_bytes)
        if not isinstance(stored, StoredTensor) or stored.dtype != dtype or stored.numel != self.numel:
            raise UserError(f"{self.path}: byte {self.offset} doesn't hold the tensor that the index says is there")
        return stored.offset


class Files:
    """Files that are read at places, a few of them open at a time."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, IO[bytes]] = OrderedDict()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for handle in self._open.values():
            handle.close()
        self._open.clear()

    def read(self, path: Path, view: memoryview, at: int) -> None:
        """Fill `view` from byte `at` of a file. Raises UserError where the file is too short."""
        descriptor = self.descriptor(path)
        while len(view):
            count = os.preadv(descriptor, [view], at)
            if count == 0:
                raise UserError(f"{path} ends at byte {at}, before its index says; fetch or write it again")
            view, at = view[count:], at + count

    def descriptor(self, path: Path) -> int:
        """Of a file, which stays open for a while."""
        if path not in self._open:
            if len(self._open) == _MOST_OPEN:
                self._open.popitem(last=False)[1].close()
            self._open[path] = open(path, "rb", buffering=0)  # noqa: SIM115 - closed in `__exit__`
        self._open.move_to_end(path)
        return self._open[path].fileno()


@dataclass(frozen=True)
class TensorSource:
    """A tensor of `shape`; its pieces are boxes of the same elements laid out as `grid`.

    `grid` is `shape`, or (numel,) for pieces that are ranges of the flattened tensor.
    """

    name: str
    shape: tuple[int, ...]
    dtype: ElementType
    pieces: tuple[Piece, ...]
    grid: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor as it is stored."""
        return math.prod(self.shape) * self.dtype.itemsize

    def renamed(self, name: str) -> TensorSource:
        """The same tensor under another name."""
        return replace(self, name=name)

    def check_whole(self) -> None:
        """Raise UserError where the pieces don't have as many elements as the tensor."""
        numel, have = math.prod(self.shape), sum(piece.numel for piece in self.pieces)
        if have != numel:
            raise UserError(f"tensor '{self.name}' has {have} of {numel} elements in the checkpoint; use another one")

    @cached_property
    def _flat(self) -> list[tuple[int, Piece]] | None:
        """(first element in the flattened tensor, piece), rising; None where a piece is no contiguous range of it."""
        found = []
        for piece in self.pieces:
            start = _flat_start(piece, self.grid)
            if start is None:
                return None
            found.append((start, piece))
        return sorted((pair for pair in found if pair[1].numel), key=lambda pair: pair[0])

    def blocks(self, files: Files, block_bytes: int = BLOCK_BYTES) -> Iterator[np.ndarray]:
        """The elements in C order, in flat arrays of about `block_bytes`, as unsigned integers of their width.

        They are read through `files`. A block is valid until the next one is taken. Raises UserError where pieces are
        missing or overlap.
        """
        self.check_whole()
        read = self._flat_blocks if self._flat is not None else self._row_blocks
        return read(files, block_bytes)

    def _flat_blocks(self, files: Files, block_bytes: int) -> Iterator[np.ndarray]:
        assert self._flat is not None
        width = self.dtype.itemsize
        buffer = bytearray(max(block_bytes // width, 1) * width)
        view, values = memoryview(buffer), np.frombuffer(buffer, dtype=self.dtype.raw)
        position = 0
        for start, piece in self._flat:
            if start != position:
                raise UserError(f"tensor '{self.name}': pieces of it overlap at element {min(start, position)}")
            position += piece.numel
            at, left = piece.located(self.dtype), piece.numel * width
            while left:
                count = min(left, len(buffer))
                files.read(piece.path, view[:count], at)
                yield values[: count // width]
                at, left = at + count, left - count

    def _row_blocks(self, files: Files, block_bytes: int) -> Iterator[np.ndarray]:
        width, raw = self.dtype.itemsize, self.dtype.raw
        num_rows, row = self.grid[0], math.prod(self.grid[1:])
        rows = max(1, block_bytes // (row * width))
        places = [(piece, piece.located(self.dtype)) for piece in self.pieces if piece.numel]
        for first in range(0, num_rows, rows):
            last = min(first + rows, num_rows)
            block = np.empty((last - first, *self.grid[1:]), dtype=raw)
            filled = 0
            for piece, at in places:
                low, high = max(first, piece.offsets[0]), min(last, piece.offsets[0] + piece.sizes[0])
                if low >= high:
                    continue
                part = np.empty((high - low, *piece.sizes[1:]), dtype=raw)
                skipped = (low - piece.offsets[0]) * math.prod(piece.sizes[1:]) * width
                files.read(piece.path, memoryview(part.data).cast("B"), at + skipped)
                inner = tuple(slice(o, o + s) for o, s in zip(piece.offsets[1:], piece.sizes[1:], strict=True))
                block[(slice(low - first, high - first), *inner)] = part
                filled += part.size
            if filled != block.size:
                raise UserError(f"tensor '{self.name}': rows {first} to {last} are not whole in the checkpoint")
            yield block.reshape(-1)


def _flat_start(piece: Piece, grid: tuple[int, ...]) -> int | None:
    """First element of a box in the flattened tensor, or None where the box is no contiguous range of it."""
    axis = 0
    while axis < len(grid) and piece.sizes[axis] == 1:
        axis += 1
    if any(size != length for size, length in zip(piece.sizes[axis + 1 :], grid[axis + 1 :], strict=True)):
        return None
    return sum(start * math.prod(grid[i + 1 :]) for i, start in enumerate(piece.offsets))
