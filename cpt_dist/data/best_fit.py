"""Best-fit packing: documents laid into rows so that one that fits into a row is never cut.

Within a shard the documents are placed from the longest to the shortest, each into the row with the least room that
still takes it (best-fit decreasing: Ding et al. 2024, arXiv 2404.10830). Where that leaves gaps, `subset_sum.py` is
tried too, and pieces of documents that must be cut anyway are cut again to fill what is left. Nothing is drawn: a plan
is a function of the documents' lengths and of `seq_len`.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cpt_dist.data.packing import Row, RowSource, selected_documents
from cpt_dist.data.plan_files import PlanArrays, load_plan, plan_path, save_plan
from cpt_dist.data.structural import STRUCTURAL_VERSION, structural_pieces
from cpt_dist.data.subset_sum import subset_sum_fill

BEST_FIT_VERSION = 1
"""Raised by any change after which a shard's rows differ; part of the order's identity."""

_GOOD_UTILISATION = 0.999
"""Where the rows are filled this far, nothing more is tried."""
_SMALLEST_GAP = 16
"""A gap of fewer tokens is left empty rather than filled with a piece of a document."""


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


def _good(num_tokens: int, num_rows: int, seq_len: int) -> bool:
    """Whether no further attempt is worth its time: nearly full, or as few rows as there can be."""
    return num_rows == -(-num_tokens // seq_len) or num_tokens >= _GOOD_UTILISATION * num_rows * seq_len


def _fewest_bins(sizes: np.ndarray, capacity: int) -> tuple[np.ndarray, int]:
    """The packing with the fewest bins of those tried, the quickest first: bin of each item, and their number."""
    num_tokens = int(sizes.sum())
    best = best_fit_decreasing(sizes, capacity)
    for seed_share in (3, capacity):
        if _good(num_tokens, best[1], capacity):
            break
        best = min(best, subset_sum_fill(sizes, capacity, seed_share), key=lambda packed: packed[1])
    return best


def _even_pieces(documents: np.ndarray, seq_len: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """start, stop and document of the pieces of documents (int64 [n, 2]) cut every seq_len tokens."""
    lengths = documents[:, 1] - documents[:, 0]
    counts = -(-lengths // seq_len)
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    start = np.repeat(documents[:, 0], counts) + number * seq_len
    of = np.repeat(np.arange(len(documents)), counts)
    return start, np.minimum(start + seq_len, documents[of, 1]), of


def pack_shard(
    documents: np.ndarray, seq_len: int, places: tuple[np.ndarray, np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rows of a shard whose `documents` are the token ranges int64 [n, 2], rising.

    Longer documents than `seq_len` are cut at `places` (ends of paragraphs and of lines, `structural.py`) where there
    are any, and then the gaps that this leaves stay as they are; else wherever rows are full.
    Returns first_span (int64 [rows + 1]), start and stop (int64 [spans]): row r has the spans [first_span[r],
    first_span[r + 1]), which rise within it. Every token is in one span.
    """
    structural = False
    if places is not None and any(level.size for level in places):
        structural = True
        start, stop, of = structural_pieces(documents, seq_len, *places)
    else:
        start, stop, of = _even_pieces(documents, seq_len)
    if not start.size:
        return np.zeros(1, dtype=np.int64), start, stop
    bins, num_rows = _fewest_bins(stop - start, seq_len)
    lengths = documents[of, 1] - documents[of, 0]
    cut = lengths > seq_len
    if not structural and cut.any() and not _good(int((stop - start).sum()), num_rows, seq_len):
        after = np.searchsorted(of, of, side="right") - 1 - np.arange(len(of))
        start, stop, bins = _fill_gaps(start, stop, bins, np.where(cut, after, -1), seq_len)
    order = np.lexsort((start, bins))
    bins, start, stop = np.unique(bins[order], return_inverse=True)[1], start[order], stop[order]
    # Neighbours in the shard that meet again in a row are read as one span.
    begins = np.flatnonzero(np.concatenate([[True], (bins[1:] != bins[:-1]) | (start[1:] != stop[:-1])]))
    ends = np.append(begins[1:], len(bins)) - 1
    first_span = np.searchsorted(bins[begins], np.arange(bins[-1] + 2))
    return first_span, start[begins], stop[ends]


def _fill_gaps(
    start: np.ndarray, stop: np.ndarray, bins: np.ndarray, after: np.ndarray, seq_len: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Take rows of nothing but pieces of long documents apart and fill the gaps of other rows with them.

    `after` (int64 [pieces]) is how many pieces of its document follow a piece, -1 for a whole document. Returns start,
    stop and bin of the pieces; the bins of rows that are gone are not used. Rows are taken with the least in them
    first, then with ends of documents first, so that no one document is cut into all the small pieces; gaps with the
    most room first, so that pieces are as few as can be.
    """
    sizes = stop - start
    loads = np.bincount(bins, weights=sizes).astype(np.int64)
    num_rows, num_tokens = len(loads), int(sizes.sum())
    rank = np.full(num_rows, len(sizes))
    np.minimum.at(rank, bins, after)
    members = np.argsort(bins, kind="stable")
    first_member = np.searchsorted(bins[members], np.arange(num_rows + 1))
    gaps = [(load - seq_len, row) for row, load in enumerate(loads.tolist()) if seq_len - load >= _SMALLEST_GAP]
    heapq.heapify(gaps)
    room = {row: -gap for gap, row in gaps}
    free = sum(room.values())
    touched: set[int] = set()
    gone: set[int] = set()
    pieces: list[tuple[int, int, int]] = []
    for row in np.lexsort((rank, loads)).tolist():
        if rank[row] < 0 or row in touched:
            continue
        own = members[first_member[row] : first_member[row + 1]]
        # Each piece of the row but the last may leave up to two small gaps unused.
        needed = loads[row] + 2 * _SMALLEST_GAP * (len(own) - 1)
        if _good(num_tokens, num_rows - len(gone), seq_len) or free - room.get(row, 0) < needed:
            break
        gone.add(row)
        free -= room.pop(row, 0)
        for begin, end in zip(start[own].tolist(), stop[own].tolist(), strict=True):
            while begin < end:
                gap, other = heapq.heappop(gaps)
                if other in gone:
                    continue
                taken = min(-gap, end - begin)
                rest = end - begin - taken
                if 0 < rest < _SMALLEST_GAP // 2:
                    taken -= _SMALLEST_GAP // 2 - rest
                pieces.append((begin, begin + taken, other))
                begin += taken
                touched.add(other)
                free -= room.pop(other)
                if -gap - taken >= _SMALLEST_GAP:
                    room[other] = -gap - taken
                    free += room[other]
                    heapq.heappush(gaps, (gap + taken, other))
    if not pieces:
        return start, stop, bins
    kept = ~np.isin(bins, list(gone))
    new = np.array(pieces, dtype=np.int64)
    start, stop, bins = (np.concatenate([old[kept], new[:, at]]) for at, old in enumerate((start, stop, bins)))
    return start, stop, bins


class CutCounts(NamedTuple):
    """Cuts of documents, by where they lie: at recorded ends of paragraphs, of other lines, or at neither."""

    paragraphs: int
    lines: int
    neither: int


class BestFit:
    """A source packed by best fit, shard by shard; rows never cross a shard and no token is lost or repeated.

    `first_row` (int64 [shards + 1]) has the first row of each shard; the other arrays are those of `pack_shard` over
    all shards, one after the other.
    """

    packing = f"best_fit-{BEST_FIT_VERSION}"
    """Names the rows in the file of a plan that is kept."""

    def __init__(
        self, seq_len: int, first_row: np.ndarray, first_span: np.ndarray, start: np.ndarray, stop: np.ndarray
    ) -> None:
        self.seq_len = seq_len
        self._first_row, self._first_span, self._start, self._stop = first_row, first_span, start, stop
        self._num_tokens = int(stop.sum() - start.sum())

    @classmethod
    def of(cls, source: RowSource, seq_len: int) -> BestFit:
        """The plan of a source, read from `source.plan_folder` where it is there and whole, else made and kept there.

        Raises ValueError if seq_len < 1, and UserError for a damaged shard.
        """
        if seq_len < 1:
            raise ValueError(f"seq_len {seq_len} must be at least 1")
        path: Path | None = None
        if source.plan_folder is not None:
            path = plan_path(source.plan_folder, source.name, source.fingerprint, cls.packing, seq_len)
        arrays = load_plan(path) if path else None
        if arrays is None:
            arrays = cls._pack(source, seq_len)
            if path:
                save_plan(path, arrays)
        return cls(seq_len, *arrays)

    @classmethod
    def _pack(cls, source: RowSource, seq_len: int) -> PlanArrays:
        """The arrays of the plan of all shards of a source."""
        return _join([pack_shard(selected_documents(source, n), seq_len) for n in range(len(source.shard_tokens))])

    @property
    def num_rows(self) -> int:
        """Rows of the source."""
        return int(self._first_row[-1])

    @property
    def rows_per_shard(self) -> np.ndarray:
        """int64 [num_shards]: rows in each shard; rows are numbered through the shards in their order."""
        return np.diff(self._first_row)

    @property
    def num_tokens(self) -> int:
        """Tokens of the source: every one is in exactly one row."""
        return self._num_tokens

    def row(self, index: int) -> Row:
        """Where the tokens of row `index` lie; raises IndexError outside 0 … num_rows-1."""
        if not 0 <= index < self.num_rows:
            raise IndexError(f"row {index} is outside 0 to {self.num_rows - 1}")
        shard = int(self._first_row.searchsorted(index, side="right")) - 1
        first, last = self._first_span[index : index + 2].tolist()
        return Row(shard, tuple(zip(self._start[first:last].tolist(), self._stop[first:last].tolist(), strict=True)))

    def rows(self, index: np.ndarray) -> list[Row]:
        """`row` of each of `index` (int64 [n]), quicker than one by one."""
        if not 0 <= index.min(initial=0) <= index.max(initial=-1) < self.num_rows:
            return [self.row(one) for one in index.tolist()]
        shards = (self._first_row.searchsorted(index, side="right") - 1).tolist()
        places = zip(shards, self._first_span[index].tolist(), self._first_span[index + 1].tolist(), strict=True)
        return [
            Row(shard, tuple(zip(self._start[first:last].tolist(), self._stop[first:last].tolist(), strict=True)))
            for shard, first, last in places
        ]

    def rows_of(self, shard: int, start: int, stop: int) -> np.ndarray:
        """int64, rising: the rows that hold any of the tokens [start, stop) of a shard; `row` the other way round."""
        first, last = self._first_span[self._first_row[shard : shard + 2]].tolist()
        holds = np.maximum(self._start[first:last], start) < np.minimum(self._stop[first:last], stop)
        return np.unique(self._first_span.searchsorted(first + np.flatnonzero(holds), side="right") - 1)

    def count_cuts(self, source: RowSource) -> CutCounts:
        """Places within documents of `source`, the source of the plan, at which a span ends."""
        counts = np.zeros(3, dtype=np.int64)
        for shard in range(len(self._first_row) - 1):
            first, last = self._first_span[self._first_row[shard : shard + 2]].tolist()
            ends = selected_documents(source, shard)[:, 1]
            stops = self._stop[first:last]
            cuts = stops[~np.isin(stops, ends)]
            counts += (cuts.size, *(np.isin(cuts, places).sum() for places in source.cuts(shard)))
        total, paragraphs, lines = counts.tolist()
        return CutCounts(paragraphs, lines, total - paragraphs - lines)


class StructuralFit(BestFit):
    """Best fit whose cuts of long documents lie at recorded ends of paragraphs and lines (`structural.py`)."""

    packing = f"structural-{STRUCTURAL_VERSION}"

    @classmethod
    def _pack(cls, source: RowSource, seq_len: int) -> PlanArrays:
        """The arrays of the plan of all shards of a source; reads their recorded places."""
        shards = range(len(source.shard_tokens))
        return _join([pack_shard(selected_documents(source, n), seq_len, source.cuts(n)) for n in shards])


def _join(shards: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> PlanArrays:
    """The arrays of a plan from those of its shards."""
    first_row = np.cumsum([0, *(len(first_span) - 1 for first_span, _, _ in shards)], dtype=np.int64)
    before = np.cumsum([0, *(len(start) for _, start, _ in shards)])
    firsts = [spans + first_span[:-1] for spans, (first_span, _, _) in zip(before, shards, strict=False)]
    none = np.empty(0, dtype=np.int64)
    start, stop = (np.concatenate([none, *(shard[column] for shard in shards)]) for column in (1, 2))
    return first_row, np.concatenate([*firsts, before[-1:]]), start, stop
