"""A second packing, for lengths that best-fit decreasing packs badly: each row is filled by an exact subset sum.

Placing the longest first leaves documents of nearly one length for the end, and then no sum of them fills a row. Here
every row takes a long document, or any where no long one is left, and looks among some dozens of documents of all
lengths for those that fill the room that is left (Gupta and Ho's minimum bin slack, 1999, over a sample). The sums
that can be reached are the bits of an integer, so that one shift and one "or" add a document to all of them.
"""

from __future__ import annotations

import numpy as np

_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 divided by the golden ratio: its multiples are spread evenly
_SAMPLE = 96
"""Documents that are looked at for a row."""


class _Draws:
    """Numbers from 0 to n - 1 for any n, spread evenly however many are drawn, the same on every machine."""

    def __init__(self) -> None:
        self._state = 0

    def __call__(self, n: int) -> int:
        self._state = (self._state + _GOLDEN) & (2**64 - 1)
        return self._state * n >> 64


def subset_sum_fill(sizes: np.ndarray, capacity: int, seed_share: int) -> tuple[np.ndarray, int]:
    """Bin of each item (int64 [n]) and the number of bins, for items of `sizes` (int64 [n] in 1 … capacity).

    An item longer than capacity / seed_share begins a bin before any shorter one does.
    """
    order = np.argsort(-sizes, kind="stable")
    left = list(zip(sizes[order].tolist(), order.tolist(), strict=True))  # not placed, the longest first
    bins = np.empty(len(sizes), dtype=np.int64)
    draw = _Draws()
    num_bins = 0
    while left:
        first = 0 if left[0][0] * seed_share > capacity else draw(len(left))
        size, item = left.pop(first)
        bins[item] = num_bins
        for place in _best_subset(left, capacity - size, draw):
            bins[left.pop(place)[1]] = num_bins
        num_bins += 1
    return bins, num_bins


def _best_subset(left: list[tuple[int, int]], room: int, draw: _Draws) -> list[int]:
    """Places in `left`, falling, of items that fill `room` as far as a sample of the items can."""
    if not left or not room:
        return []
    sample = dict.fromkeys(draw(len(left)) for _ in range(_SAMPLE))
    candidates = [(place, left[place][0]) for place in sample if left[place][0] <= room]
    within = (1 << room + 1) - 1
    reached = [1]  # bit s of the i-th: the first i candidates have a subset with the sum s
    for _, size in candidates:
        reached.append(reached[-1] | (reached[-1] << size & within))
        if reached[-1] >> room:
            break
    total = reached[-1].bit_length() - 1
    places = []
    for index in range(len(reached) - 1, 0, -1):
        if not reached[index - 1] >> total & 1:
            places.append(candidates[index - 1][0])
            total -= candidates[index - 1][1]
    return sorted(places, reverse=True)
