"""Pack plans: which tokens of which shard make row r, for one sequence length.

A plan is arithmetic over the sizes in a manifest, so another sequence length is another plan over the same files and
nothing is rewritten. Rows stay inside one shard, which keeps each readable alone (Megatron-core's rows cross files).
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Row:
    """The tokens of one row: spans [start, stop) of a single shard, in the order in which they are read."""

    shard: int
    spans: tuple[tuple[int, int], ...]

    @property
    def num_tokens(self) -> int:
        """Tokens of the row, at most the plan's sequence length."""
        return sum(stop - start for start, stop in self.spans)


class PackPlan(Protocol):
    """What the sample order and the batches need of a way of packing."""

    @property
    def num_rows(self) -> int:
        """Rows of the source; row indices are 0 … num_rows-1."""

    @property
    def num_tokens(self) -> int:
        """Tokens in all rows together."""

    def row(self, index: int) -> Row:
        """Where the tokens of row `index` lie; raises IndexError outside 0 … num_rows-1."""


class ConcatAndChunk:
    """Each shard's tokens cut every `seq_len`; a shard's last row is shorter, and no token is lost or padded.

    `shard_tokens` is int64 [num_shards]. Raises ValueError if seq_len < 1.
    """

    def __init__(self, shard_tokens: np.ndarray, seq_len: int) -> None:
        if seq_len < 1:
            raise ValueError(f"seq_len {seq_len} must be at least 1")
        self.seq_len = seq_len
        sizes = np.asarray(shard_tokens, dtype=np.int64)
        # Lists: asked for one row at a time, they are ten times as fast as arrays.
        self._shard_tokens: list[int] = sizes.tolist()
        self._first_rows: list[int] = [0, *np.cumsum(-(-sizes // seq_len)).tolist()]

    @property
    def num_rows(self) -> int:
        """Rows of the source."""
        return self._first_rows[-1]

    @property
    def num_tokens(self) -> int:
        """Tokens of the source: every one is in exactly one row."""
        return sum(self._shard_tokens)

    def row(self, index: int) -> Row:
        """Where the tokens of row `index` lie; raises IndexError outside 0 … num_rows-1."""
        if not 0 <= index < self.num_rows:
            raise IndexError(f"row {index} is outside 0 to {self.num_rows - 1}")
        shard = bisect_right(self._first_rows, index) - 1
        start = (index - self._first_rows[shard]) * self.seq_len
        return Row(shard, ((start, min(start + self.seq_len, self._shard_tokens[shard])),))


def document_pieces(doc_offsets: np.ndarray, start: int, stop: int) -> tuple[int, np.ndarray]:
    """The documents that tokens [start, stop) of a shard, not empty, lie in.

    `doc_offsets` is uint64 [num_documents + 1]. Returns the index of the first of those documents, and int64 [n + 1]
    bounds: piece i is [bounds[i], bounds[i + 1]) of document first + i, cut to the span. A document without tokens
    gives a piece without tokens. Boundaries come from the record, never from a separator token.
    """
    # Keys of the array's own type: a signed key would turn the whole array into doubles at each call.
    first = int(np.searchsorted(doc_offsets, doc_offsets.dtype.type(start), side="right")) - 1
    last = int(np.searchsorted(doc_offsets, doc_offsets.dtype.type(stop), side="left"))
    return first, np.clip(doc_offsets[first : last + 1].astype(np.int64), start, stop)
