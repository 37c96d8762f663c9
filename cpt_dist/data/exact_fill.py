"""A second packing, for lengths that best-fit decreasing packs badly: rows completed by an exact pair.

Placing the longest first leaves documents of nearly one length for the end, and then no sum of them fills a row. Here
each row takes documents from all over the lengths, and its last two are looked up so that they fill the room that is
left to the token where such a pair exists (in the spirit of Gupta and Ho's minimum bin slack, 1999). The lengths in
stock are the bits of an integer, so that one shift and one "and" find all pairs of a given sum.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle

import numpy as np

_GOLDEN = 0.6180339887498949
_MOST_SLACK = 8
"""Tokens that the last pair may leave of a row before single documents are tried."""
_SEED_SHARE = 3
"""A document longer than a row divided by this begins a row before any shorter one does."""


class _Stock:
    """Items not yet placed, by size; `sizes` has bit s set while one of size s is left, `mirror` bit capacity - s."""

    def __init__(self, sizes: np.ndarray, capacity: int) -> None:
        self.capacity = capacity
        self.counts = np.bincount(sizes, minlength=capacity + 1).tolist()
        self.left = len(sizes)
        self.sizes = self.mirror = 0
        for size in np.unique(sizes).tolist():
            self.sizes |= 1 << size
            self.mirror |= 1 << (capacity - size)

    def take(self, size: int) -> None:
        self.left -= 1
        self.counts[size] -= 1
        if not self.counts[size]:
            self.sizes ^= 1 << size
            self.mirror ^= 1 << (self.capacity - size)

    @property
    def largest(self) -> int:
        return self.sizes.bit_length() - 1

    def pair(self, total: int, near: int) -> int:
        """One of two items that sum to `total`: the smallest not below `near`, else the largest; 0 for none."""
        found = self.sizes & (self.mirror >> (self.capacity - total))
        if total % 2 == 0 and self.counts[total // 2] == 1:
            found &= ~(1 << total // 2)
        return _lowest_from(found, near) if found else 0


def _lowest_from(bits: int, near: int) -> int:
    """The lowest set bit not below `near`, else the highest."""
    above = bits >> near
    return near + (above & -above).bit_length() - 1 if above else bits.bit_length() - 1


def exact_fill(sizes: np.ndarray, capacity: int) -> tuple[np.ndarray, int]:
    """Bin of each item (int64 [n]) and the number of bins, for items of `sizes` (int64 [n] in 1 … capacity)."""
    order = np.argsort(sizes, kind="stable")
    ranks = ((np.arange(1, len(sizes) + 1) * _GOLDEN) % 1.0 * len(sizes)).astype(np.int64)
    draws = cycle(sizes[order][ranks].tolist())  # sizes in turn from all over their distribution
    stock = _Stock(sizes, capacity)
    taken: list[int] = []
    ends: list[int] = []
    while stock.left:
        first = stock.largest
        if first * _SEED_SHARE <= capacity:
            first = _lowest_from(stock.sizes, next(draws))
        stock.take(first)
        taken.append(first)
        _complete(stock, capacity - first, draws, taken)
        ends.append(len(taken))
    # The items of a size are taken in their order: the k-th time it comes up means the k-th of them.
    bins = np.empty(len(sizes), dtype=np.int64)
    sequence = np.argsort(np.array(taken), kind="stable")
    bins[order] = np.searchsorted(ends, sequence, side="right")
    return bins, len(ends)


def _complete(stock: _Stock, room: int, draws: Iterator[int], taken: list[int]) -> None:
    """Fill one bin: single items from the draws, and an exact one or an exact pair as soon as there is one."""
    while room and stock.left:
        fitting = stock.sizes & ((1 << room + 1) - 1)
        if not fitting:
            return
        chosen: tuple[int, ...] = ()
        near = min(next(draws), room)
        if room <= 2 * stock.largest:
            chosen = _last_items(stock, room, near)
        if not chosen:
            below = fitting & ((1 << near + 1) - 1)
            chosen = (below.bit_length() - 1 if below else (fitting & -fitting).bit_length() - 1,)
        for size in chosen:
            stock.take(size)
            room -= size
        taken.extend(chosen)


def _last_items(stock: _Stock, room: int, near: int) -> tuple[int, ...]:
    """One item or two that leave at most `_MOST_SLACK` of `room`, the least that can be; () where none do."""
    for total in range(room, max(0, room - _MOST_SLACK - 1), -1):
        if stock.sizes >> total & 1:
            return (total,)
        other = stock.pair(total, near)
        if other:
            return (other, total - other)
    return ()
