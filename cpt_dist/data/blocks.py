"""Memory for batches that is used again once nobody holds the batch that it was lent to.

Fresh memory costs a page fault every 4 KiB, which is more than writing tokens to it. Whether a block is free is read
from its reference count: every tensor of a batch keeps its block alive, wherever it is kept.
"""

from __future__ import annotations

import sys

import numpy as np

_MOST_BYTES = 128 << 20
_STEP = 4096
_FREE = 3
"""References to a block that only the pool holds: the list's, the loop's and that of the call that counts them."""


class Blocks:
    """A pool of at most `_MOST_BYTES`; beyond that, memory is made for one use."""

    def __init__(self) -> None:
        self._blocks: list[np.ndarray] = []
        self._num_bytes = 0
        self._next = 0

    def columns(self, num_columns: int, length: int) -> np.ndarray:
        """int64 [num_columns, length], not filled."""
        size = num_columns * length
        for _ in range(len(self._blocks)):
            self._next = (self._next + 1) % len(self._blocks)
            block = self._blocks[self._next]
            if block.size >= size and sys.getrefcount(block) == _FREE:
                return block[:size].reshape(num_columns, length)
        block = np.empty(-(-size // _STEP) * _STEP, dtype=np.int64)
        if self._num_bytes + block.nbytes <= _MOST_BYTES:
            self._num_bytes += block.nbytes
            self._blocks.append(block)
        return block[:size].reshape(num_columns, length)
