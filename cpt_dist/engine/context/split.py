"""Which tokens of a flattened micro-batch each rank of a context group takes: a pure function of the borders.

The tokens are cut into equal chunks and each rank takes equally many of them, so memory is even. Which ones is chosen
by attention work (pairs of query and key), not by tokens: the heaviest chunk that is left goes to the rank with the
least work. For a single document that is the head-tail order of Llama 3 (arXiv 2407.21783, section 3.3.2).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Range = tuple[int, int]
"""First token, and one past the last."""

_CHUNKS_PER_RANK = (2, 4, 8, 16)
_ENOUGH = 1.02
"""An imbalance below which finer chunks, which cost calls, are not tried."""
_LEAST_CHUNK_TOKENS = 128
"""Chunks shorter than this are not made for balance alone."""


@dataclass(frozen=True)
class SequenceSplit:
    """The tokens [0, num_tokens) and what is padded to make equal parts of them, dealt out to ranks."""

    num_tokens: int
    """Tokens of the micro-batch."""
    borders: list[int]
    """Of its documents; the padding, if any, is one more document at the end."""
    parts: list[list[Range]]
    """[rank]: its ranges of tokens, rising, no two of them neighbours."""
    work: list[float]
    """[rank]: pairs of query and key in its part, the mean over layers."""

    @property
    def part_tokens(self) -> int:
        """Tokens of each rank."""
        return self.borders[-1] // len(self.parts)

    @property
    def imbalance(self) -> float:
        """Attention work of the busiest rank over the mean."""
        return max(self.work) * len(self.work) / max(1.0, sum(self.work))

    def document_of(self, token: int) -> Range:
        """The document that holds `token`."""
        place = bisect_right(self.borders, token)
        return self.borders[place - 1], self.borders[place]

    def borders_within(self, span: Range) -> list[int]:
        """Borders of the pieces of documents in `span`, from 0 to its length."""
        first, last = bisect_right(self.borders, span[0]), bisect_right(self.borders, span[1] - 1)
        return [0, *(border - span[0] for border in self.borders[first:last]), span[1] - span[0]]

    def order(self) -> np.ndarray:
        """int64 [tokens with padding]: the tokens in the order in which the ranks hold them, rank after rank."""
        return np.concatenate([np.arange(start, stop) for part in self.parts for start, stop in part])


def split_sequence(
    borders: Sequence[int], num_ranks: int, windows: Sequence[int | None] = (None,), whole_parts: bool = False
) -> SequenceSplit:
    """Deal the documents between `borders` (from 0, rising) out to `num_ranks`.

    `windows` is the sliding window of each layer, None without one. With `whole_parts` each rank takes one range.
    """
    num_tokens = borders[-1]
    best: SequenceSplit | None = None
    for per_rank in (1,) if whole_parts else _CHUNKS_PER_RANK:
        if best is not None and num_tokens < per_rank * num_ranks * _LEAST_CHUNK_TOKENS:
            break
        split = _split(borders, num_ranks, per_rank, windows)
        if best is None or split.imbalance < best.imbalance:
            best = split
        if best.imbalance <= _ENOUGH:
            break
    assert best is not None
    return best


def _split(borders: Sequence[int], num_ranks: int, per_rank: int, windows: Sequence[int | None]) -> SequenceSplit:
    num_tokens, num_chunks = borders[-1], num_ranks * per_rank
    length = -(-num_tokens // num_chunks)
    places = np.arange(num_chunks + 1) * length
    padded = [*borders] if places[-1] == num_tokens else [*borders, int(places[-1])]
    work = np.diff(work_before(places, padded, windows))
    loads, chunks = [0.0] * num_ranks, [[] for _ in range(num_ranks)]  # type: tuple[list[float], list[list[int]]]
    for chunk in np.argsort(-work, kind="stable").tolist():
        room = [rank for rank in range(num_ranks) if len(chunks[rank]) < per_rank]
        # Alone in its part, each chunk keeps the rank of its number, so that parts lie in the order of the ranks.
        rank = chunk if per_rank == 1 else min(room, key=loads.__getitem__)
        loads[rank] += float(work[chunk])
        chunks[rank].append(chunk)
    parts = [_merged([(one * length, (one + 1) * length) for one in sorted(own)]) for own in chunks]
    return SequenceSplit(num_tokens, padded, parts, loads)


def _merged(ranges: list[Range]) -> list[Range]:
    merged: list[Range] = []
    for start, stop in ranges:
        if merged and merged[-1][1] == start:
            start = merged.pop()[0]
        merged.append((start, stop))
    return merged


def work_before(places: np.ndarray, borders: Sequence[int], windows: Sequence[int | None]) -> np.ndarray:
    """float64: pairs of query and key of the queries before each place, the mean over layers.

    A query meets itself and the tokens before it in its document, in a layer with a window at most that many.
    """
    starts = np.asarray(borders, dtype=np.int64)
    counts = {window: list(windows).count(window) for window in set(windows)}

    def pairs(length: np.ndarray) -> np.ndarray:
        total = np.zeros(len(length))
        for window, count in counts.items():
            reach = length if window is None else np.minimum(length, window)
            total += count * (reach * (reach + 1) / 2 + (length - reach) * reach)
        return total / len(windows)

    document = np.searchsorted(starts, places, side="right") - 1
    whole = np.concatenate([[0.0], np.cumsum(pairs(np.diff(starts)))])
    return whole[document] + pairs(places - starts[document])


@dataclass(frozen=True)
class Rectangle:
    """Queries of one range that all come after the keys of another, in one document."""

    queries: Range
    keys: Range


def rectangles(split: SequenceSplit, rank: int, other: int, window: int | None) -> list[Rectangle]:
    """What the queries of `rank` meet among the keys of `other` beyond the range that a query lies in itself.

    Two ranges have at most one document in common: it ends the one with the keys and begins the one with the queries.
    Within a `window`, each query of a rectangle reaches at least its last key.
    """
    found = []
    for start, stop in split.parts[rank]:
        document, end = split.document_of(start)
        for first, last in split.parts[other]:
            keys = (max(first, document), last)
            queries = (start, min(stop, end))
            if window is not None:
                keys = (max(keys[0], start - window + 1), last)
                queries = (start, min(queries[1], last - 1 + window))
            if last <= start and keys[0] < keys[1] and queries[0] < queries[1]:
                found.append(Rectangle(queries, keys))
    return found
