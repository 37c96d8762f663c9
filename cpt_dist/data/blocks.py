"""Memory for batches that is used again once nothing refers to the batch that it was lent to.

Fresh memory costs a page fault every 4 KiB, which is more than writing tokens to it. A block is lent as an array over
a memoryview; whatever is made from that array (slices, tensors, their views) keeps the array itself alive, and only
its end gives the block back. So a batch may be kept anywhere and for as long as one likes.
"""

from __future__ import annotations

import weakref
from collections import defaultdict

import numpy as np

_MOST_FREE_BYTES = 64 << 20
"""Free memory that is kept for further batches."""


class Blocks:
    """A pool of memory in sizes of powers of two; at most 64 MiB that nobody uses are kept."""

    def __init__(self) -> None:
        self._free: defaultdict[int, list[np.ndarray]] = defaultdict(list)
        self._free_bytes = 0
        # A quarter of the time of weakref.finalize, which also keeps a register of all in the process.
        self._lent: dict[int, tuple[weakref.ref[np.ndarray], np.ndarray]] = {}

    def array(self, num: int) -> np.ndarray:
        """int64 [num], not filled."""
        size = 1 << (max(1, num) - 1).bit_length()
        try:
            block = self._free[size].pop()
            self._free_bytes -= block.nbytes
        except IndexError:
            block = np.empty(size, dtype=np.int64)
        # numpy follows `base` through arrays to the one that owns the memory, but not through a memoryview: without
        # it, a slice would keep the block alive and not the array whose end is waited for.
        lent = np.frombuffer(block.data, dtype=np.int64)
        reference = weakref.ref(lent, self._take_back)
        self._lent[id(reference)] = (reference, block)
        return lent[:num]

    def _take_back(self, reference: weakref.ref[np.ndarray]) -> None:
        _, block = self._lent.pop(id(reference))
        if self._free_bytes + block.nbytes <= _MOST_FREE_BYTES:
            self._free_bytes += block.nbytes
            self._free[len(block)].append(block)
