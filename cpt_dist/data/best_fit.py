"""Best-fit packing: documents laid into rows so that one that fits into a row is never cut.

Within a shard the pieces are placed from the longest to the shortest, each into the row with the least room that
still takes it (best-fit decreasing: Ding et al. 2024, arXiv 2404.10830); where that leaves gaps, `exact_fill.py` is
tried too and the plan with fewer rows is taken. A document longer than a row is cut every `seq_len` tokens and every
piece is used; a shard records no sections or paragraphs, so no cut looks for one. Nothing is drawn: a plan is a
function of the documents' lengths and of `seq_len`.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from cpt_dist.data.exact_fill import exact_fill
from cpt_dist.data.packing import Row
from cpt_dist.data.plan_files import load_plan, plan_path, save_plan

BEST_FIT_VERSION = 1
"""Raised by any change after which a shard's rows differ; part of the order's identity."""

_GOOD_UTILISATION = 0.999
"""Where best-fit decreasing fills the rows this far, nothing else is tried."""


class PackedSource(Protocol):
    """What of `cpt_dist.data.shards.Source` a plan is made from."""

    shard_tokens: np.ndarray

    def doc_offsets(self, shard: int) -> np.ndarray:
        """uint64 [num_documents + 1]."""


@dataclass(frozen=True)
class ShardRows:
    """The rows of one shard: row r has the spans [first_span[r], first_span[r + 1])."""

    first_span: np.ndarray
    """int64 [num_rows + 1]."""
    start: np.ndarray
    """int64 [num_spans]: first token of each span; rising within a row."""
    stop: np.ndarray
    """int64 [num_spans]: one past its last token."""

    @property
    def num_rows(self) -> int:
        """Rows of the shard."""
        return len(self.first_span) - 1


def best_fit_decreasing(sizes: np.ndarray, capacity: int) -> tuple[np.ndarray, int]:
    """Bin of each item (int64 [n]) and the number of bins, for items of `sizes` (integers [n] in 1 … capacity).

    Items go from the largest to the smallest, equal ones in their order, each into the bin with the least room that
    takes it, else into a new one. Bins with equal room are interchangeable, and an item of size x leaves a bin with
    room r the tightest for x as long as r - x >= x; so all items of a size are placed group of bins by group of bins,
    floor(r / x) into each, and the cost hangs on the number of different sizes rather than of items.
    """
    order = np.argsort(-sizes, kind="stable")
    different, counts = np.unique(sizes, return_counts=True)
    rooms: list[int] = []  # rooms of bins that are not full, rising
    groups: dict[int, list[tuple[int, int]]] = {}  # room -> runs (first bin, number of bins), the newest last
    num_bins = 0
    placed: list[tuple[int, int, int]] = []  # (first bin, items a bin, items), in the order of `order`

    def put(room: int, first: int, num: int) -> None:
        if room == 0:
            return
        if room not in groups:
            groups[room] = []
            insort(rooms, room)
        groups[room].append((first, num))

    for size, count in zip(different[::-1].tolist(), counts[::-1].tolist(), strict=True):
        while count:
            at = bisect_left(rooms, size)
            if at < len(rooms):
                room = rooms[at]
                first, num = groups[room].pop()
                if not groups[room]:
                    del groups[room], rooms[at]
            else:
                room, first = capacity, num_bins
                num = -(-count // (capacity // size))
                num_bins += num
            each = room // size
            filled = min(num, count // each)
            if filled:
                placed.append((first, each, filled * each))
                put(room - each * size, first, filled)
                count -= filled * each
            if filled < num and count:  # fewer than `each` are left, for one bin
                placed.append((first + filled, count, count))
                put(room - count * size, first + filled, 1)
                filled, count = filled + 1, 0
            if filled < num:
                put(room, first + filled, num - filled)
    first_bins, each_bin, items = (np.array(column, dtype=np.int64) for column in zip(*placed, strict=True))
    within = np.arange(items.sum()) - np.repeat(np.cumsum(items) - items, items)
    bins = np.empty(len(sizes), dtype=np.int64)
    bins[order] = np.repeat(first_bins, items) + within // np.repeat(each_bin, items)
    return bins, num_bins


def pack_shard(doc_offsets: np.ndarray, seq_len: int) -> ShardRows:
    """The rows of a shard whose documents lie between `doc_offsets` (uint64 [num_documents + 1])."""
    offsets = np.asarray(doc_offsets).astype(np.int64)
    lengths = np.diff(offsets)
    pieces = -(-lengths // seq_len)
    number = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    start = np.repeat(offsets[:-1], pieces) + number * seq_len
    stop = np.minimum(start + seq_len, np.repeat(offsets[1:], pieces))
    if not start.size:
        return ShardRows(np.zeros(1, dtype=np.int64), start, stop)
    bins, num_rows = best_fit_decreasing(stop - start, seq_len)
    fewest = -(-int(offsets[-1] - offsets[0]) // seq_len)
    if num_rows > fewest and fewest < _GOOD_UTILISATION * num_rows:
        others, num_others = exact_fill(stop - start, seq_len)
        if num_others < num_rows:
            bins, num_rows = others, num_others
    order = np.argsort(bins, kind="stable")  # pieces are in the order of the shard, so they are in each row too
    bins, start, stop = bins[order], start[order], stop[order]
    # Neighbours in the shard that meet again in a row are read as one span.
    begins = np.flatnonzero(np.concatenate([[True], (bins[1:] != bins[:-1]) | (start[1:] != stop[:-1])]))
    ends = np.append(begins[1:], len(bins)) - 1
    first_span = np.searchsorted(bins[begins], np.arange(num_rows + 1))
    return ShardRows(first_span, start[begins], stop[ends])


class BestFit:
    """A source packed by best fit, shard by shard; rows never cross a shard and no token is lost or repeated.

    A shard is packed when it is first needed and kept. With `cache`, the plan of a shard that lies in a folder is
    also kept in `plans/` beside it and is read from there, after a check, by every later process. Raises ValueError
    if seq_len < 1, and UserError for a damaged shard.
    """

    def __init__(self, source: PackedSource, seq_len: int, cache: bool = False) -> None:
        if seq_len < 1:
            raise ValueError(f"seq_len {seq_len} must be at least 1")
        self.seq_len = seq_len
        self._source = source
        self._cache = cache
        self._shards: dict[int, ShardRows] = {}
        self._first_rows: np.ndarray | None = None

    def _path(self, shard: int) -> Path | None:
        folder, manifest = (getattr(self._source, name, None) for name in ("folder", "manifest"))
        if not self._cache or folder is None or manifest is None:
            return None
        return plan_path(folder, manifest["shards"][shard], self.seq_len, BEST_FIT_VERSION)

    def shard(self, number: int) -> ShardRows:
        """The rows of one shard."""
        if number not in self._shards:
            path = self._path(number)
            arrays = load_plan(path) if path else None
            rows = ShardRows(*arrays) if arrays else pack_shard(self._source.doc_offsets(number), self.seq_len)
            if path and not arrays:
                save_plan(path, (rows.first_span, rows.start, rows.stop))
            self._shards[number] = rows
        return self._shards[number]

    @property
    def first_rows(self) -> np.ndarray:
        """int64 [num_shards + 1]: first row of each shard, and their number; asks for the plan of every shard."""
        if self._first_rows is None:
            counts = [self.shard(number).num_rows for number in range(len(self._source.shard_tokens))]
            self._first_rows = np.cumsum([0, *counts], dtype=np.int64)
        return self._first_rows

    @property
    def num_rows(self) -> int:
        """Rows of the source."""
        return int(self.first_rows[-1])

    @property
    def num_tokens(self) -> int:
        """Tokens of the source: every one is in exactly one row."""
        return int(self._source.shard_tokens.sum())

    @property
    def utilisation(self) -> float:
        """Share of the places of all rows that hold a token."""
        return self.num_tokens / max(1, self.num_rows * self.seq_len)

    def row(self, index: int) -> Row:
        """Where the tokens of row `index` lie; raises IndexError outside 0 … num_rows-1."""
        if not 0 <= index < self.num_rows:
            raise IndexError(f"row {index} is outside 0 to {self.num_rows - 1}")
        shard = int(self.first_rows.searchsorted(index, side="right")) - 1
        rows = self.shard(shard)
        local = index - int(self.first_rows[shard])
        first, last = rows.first_span[local : local + 2].tolist()
        return Row(shard, tuple(zip(rows.start[first:last].tolist(), rows.stop[first:last].tolist(), strict=True)))
