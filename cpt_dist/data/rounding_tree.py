"""A binary tree of roundings: it hands samples from the root to the sources at its leaves, one at a time.

Of a node's first N samples floor(T_left(S^-1(N)) + 1/2) go to its left child and the rest to its right, where S is the
node's target and T_left its left child's; so counts sum to n, never fall and stay near the targets at every n (proof:
docs/mixtures.md). All nodes of a level are evaluated in one go. It knows whole numbers only, no stage and no file.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isqrt

import numpy as np

UNIT = 1 << 60
"""Weights are whole multiples of 1/UNIT, so that every sum and every comparison can be made exactly."""

_TOLERANCE = 2.0**-47
"""Relative error allowed to the double-precision estimate: 64 roundings, about 5 times what its formula can lose."""

_EXACT_COUNT = 1 << 46
"""Below it the estimate is off by less than 1/2, so a comparison by 64-bit differences (`_decide`) can't wrap."""

Joins = list[tuple[int, int]]
"""Inner nodes as (left, right), children before parents: below the number of sources a child is a source, from there
on the inner node that many places up the list. The last one is the root."""


@dataclass(frozen=True)
class _Tables:
    """Of inner node i in span j, at [i * width + j]: target in samples at the span's start, slope and bend there."""

    width: int
    start: np.ndarray
    slope: np.ndarray
    bend: np.ndarray
    left_start: np.ndarray
    left_slope: np.ndarray
    left_bend: np.ndarray


class RoundingTree:
    """The roundings of one tree.

    `weights` is int64 [source, span, 2], in multiples of 1/UNIT: the weight at a span's beginning and at its end, on a
    straight line between. `starts` (Python integers, [source, span + 1]) is 2 UNIT times the targets at the spans'
    beginnings and at the end, `lengths` the samples of each span. Over a span with weights from w0 to w1 a target is
    S(u) = S_j + w0 u + (w1 - w0) u^2 / (2 length).
    """

    def __init__(self, joins: Joins, weights: np.ndarray, starts: np.ndarray, lengths: Sequence[int]) -> None:
        self.joins = joins
        self.num_sources = len(weights)
        self._lengths = list(lengths)
        self._leaf_starts = starts
        self._weights = np.empty((self.num_sources + len(joins), *weights.shape[1:]), dtype=np.int64)
        self._weights[: self.num_sources] = weights
        rows = list(self._weights)
        for number, (left, right) in enumerate(joins, start=self.num_sources):
            np.add(rows[left], rows[right], out=rows[number])
        children = np.array(joins, dtype=np.int64)
        self._left, self._right = children[:, 0], children[:, 1]

    @property
    def root(self) -> int:
        """The node that has all samples."""
        return self.num_sources + len(self.joins) - 1

    @cached_property
    def error_bound(self) -> float:
        """Worst |count - target| over the sources: 0 at the root, 1/2 + (child's largest share) * (node's error) below.

        The largest share of a child is reached at the end of a span.
        """
        of_left, of_right = self._largest_shares()
        errors = [0.0] * (self.root + 1)
        for number in range(len(self.joins) - 1, -1, -1):
            left, right = self.joins[number]
            error = errors[self.num_sources + number]
            errors[left] = 0.5 + of_left[number] * error
            errors[right] = 0.5 + of_right[number] * error
        return max(errors[: self.num_sources])

    def _largest_shares(self) -> tuple[list[float], list[float]]:
        """Largest share of each inner node that its left and its right child ever have, correctly rounded."""
        num_inner = len(self.joins)
        children = self._weights[np.concatenate([self._left, self._right])].reshape(2 * num_inner, -1)
        node = np.tile(self._weights[self.num_sources :].reshape(num_inner, -1), (2, 1))
        share = np.divide(children, node, out=np.full(node.shape, -1.0), where=node > 0)
        # Which tree is taken hangs on the last digit, so those that may be the largest are divided as whole numbers.
        rows, columns = np.nonzero(share >= share.max(axis=1, keepdims=True) * (1 - 2.0**-50))
        parts, wholes = children[rows, columns].tolist(), node[rows, columns].tolist()
        largest = [0.0] * (2 * num_inner)
        for row, part, whole in zip(rows.tolist(), parts, wholes, strict=True):
            largest[row] = max(largest[row], part / whole)
        return largest[:num_inner], largest[num_inner:]

    @cached_property
    def _starts(self) -> list[list[int]]:
        """[node][span + 1]: 2 UNIT times the target at the beginning of each span and at the end."""
        rows = list(self._leaf_starts)
        for left, right in self.joins:
            rows.append(rows[left] + rows[right])
        return [row.tolist() for row in rows]

    @cached_property
    def _pairs(self) -> list[list[list[int]]]:
        return self._weights.tolist()

    def _open_end(self, node: int) -> tuple[int, int]:
        """The span with the node's last mix, and which of its ends: it goes on behind the last target.

        Counts round up as well as down, so a count may pass it.
        """
        span = max(number for number, pair in enumerate(self._pairs[node]) if pair[0] or pair[1])
        return span, 1 if self._pairs[node][span][1] else 0

    def left_count(self, node: int, count: int) -> int:
        """Samples for the left child among an inner node's first `count`, in whole-number arithmetic (about 2 us)."""
        left = self.joins[node - self.num_sources][0]
        starts = self._starts[node]
        span = bisect_right(starts, 2 * UNIT * count) - 1
        rest = 2 * UNIT * count - starts[span]
        start = self._starts[left][span] + UNIT
        if span == len(self._lengths):
            span, end = self._open_end(node)
            w0 = w1 = self._pairs[node][span][end]
            l0 = l1 = self._pairs[left][span][end]
        else:
            (w0, w1), (l0, l1) = self._pairs[node][span], self._pairs[left][span]
        if l0 * w1 == l1 * w0:  # the same mix all over the span: no curve
            whole = w0 + w1
            return (start * whole + rest * (l0 + l1)) // (2 * UNIT * whole)
        length, rise, left_rise = self._lengths[span], w1 - w0, l1 - l0
        if rise == 0:
            scale = 4 * w0 * w0 * length
            return (start * scale + 4 * l0 * rest * w0 * length + left_rise * rest * rest) // (2 * UNIT * scale)
        # 2 UNIT (T_left + 1/2) = (a + b sqrt(q)) / rise^2, by putting the root u of S(u) = N into T_left(u).
        cross = l0 * w1 - l1 * w0
        a = start * rise * rise + left_rise * rest * rise - 2 * length * w0 * cross
        square = 4 * cross * cross * (w0 * w0 * length * length + rise * rest * length)
        root = isqrt(square)
        root = root if cross > 0 else -root - (root * root < square)
        return (a + root) // (2 * UNIT * rise * rise)

    @cached_property
    def _tables(self) -> _Tables:
        width = len(self._lengths) + 1
        starts = np.array(self._starts, dtype=object)
        doubles = (starts / (2 * UNIT)).astype(np.float64)
        slope = np.zeros((self.root + 1, width))
        bend = np.zeros((self.root + 1, width))
        slope[:, :-1] = self._weights[:, :, 0] / UNIT
        bend[:, :-1] = (self._weights[:, :, 1] - self._weights[:, :, 0]) / (2.0 * UNIT * np.array(self._lengths, float))
        node = slice(self.num_sources, None)
        node_slope, left_slope = slope[node], slope[self._left]
        # Behind the last target the last mix of the *node* goes on, for its left child too.
        inner = self._weights[node]
        last = width - 2 - np.argmax((inner.sum(axis=2) > 0)[:, ::-1], axis=1)
        each = np.arange(len(self.joins))
        end = (inner[each, last, 1] > 0).astype(np.int64)
        node_slope[:, -1] = inner[each, last, end] / UNIT
        left_slope[:, -1] = self._weights[self._left, last, end] / UNIT
        parts = (doubles[node], node_slope, bend[node], doubles[self._left], left_slope, bend[self._left])
        return _Tables(width, *(np.ascontiguousarray(part).ravel() for part in parts))

    @cached_property
    def _first_span(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of inner nodes in the first span: the weights' sum, the left child's, and whether the mix stands still."""
        node, left = self._weights[self.num_sources :, 0], self._weights[self._left, 0]
        still = [l0 * w1 == l1 * w0 for (w0, w1), (l0, l1) in zip(node.tolist(), left.tolist(), strict=True)]
        return node.sum(axis=1), left.sum(axis=1), np.array(still)

    def left_counts(self, node: np.ndarray, count: np.ndarray, span: int) -> np.ndarray:
        """`left_count` of many: int64 [num] for inner nodes and their counts [num], mostly within `span`.

        Doubles decide where they are surely on one side of a whole number, whole-number arithmetic decides the others;
        so the result does not hang on how a host rounds. The root of S(u) = N is taken as
        2d / (w0 + sqrt(w0^2 + 4 bend d)), which loses no digits when the bend is small.
        """
        tables, inner = self._tables, node - self.num_sources
        place = inner * tables.width + span
        wrong = np.flatnonzero((tables.start.take(place) > count) | (tables.start.take(place + 1) <= count))
        if wrong.size:
            starts = tables.start.reshape(-1, tables.width)[inner[wrong]]
            place[wrong] = inner[wrong] * tables.width + (starts <= count[wrong, None]).sum(axis=1) - 1
        rest = np.maximum(count - tables.start.take(place), 0.0)
        slope = tables.slope.take(place)
        below = slope + np.sqrt(np.maximum(slope * slope + 4.0 * tables.bend.take(place) * rest, 0.0))
        time = np.divide(2.0 * rest, below, out=np.zeros(len(node)), where=below > 0)
        value = time * (tables.left_slope.take(place) + tables.left_bend.take(place) * time)
        value += tables.left_start.take(place) + 0.5
        nearest = np.rint(value)
        result = np.floor(value).astype(np.int64)
        unsure = np.flatnonzero(np.abs(value - nearest) <= _TOLERANCE * (count + 1.0))
        if unsure.size:
            in_first = place[unsure] == inner[unsure] * tables.width
            result[unsure] = self._decide(node[unsure], count[unsure], nearest[unsure].astype(np.int64), in_first)
        return result

    def _decide(self, node: np.ndarray, count: np.ndarray, nearest: np.ndarray, in_first: np.ndarray) -> np.ndarray:
        """`left_count` of counts whose value is `nearest` or just below it; `in_first`: within the first span."""
        node_weight, left_weight, still = self._first_span
        inner = node - self.num_sources
        # In a first span of one mix the value is count * left / node + 1/2. Whether it reaches `nearest` is the sign of
        # 2 count left - (2 nearest - 1) node: its terms pass 64 bits, but it doesn't, and so wraps to itself.
        above = 2 * count * left_weight[inner] - (2 * nearest - 1) * node_weight[inner]
        result = nearest - (above < 0)
        for place in np.flatnonzero(~(in_first & still[inner]) | (count >= _EXACT_COUNT)).tolist():
            result[place] = self.left_count(int(node[place]), int(count[place]))
        return result

    def counts(self, n: int) -> np.ndarray:
        """Samples of each source among the first n: int64 [source], summing to n."""
        counts = [0] * self.root + [n]
        for node in range(self.root, self.num_sources - 1, -1):
            left, right = self.joins[node - self.num_sources]
            if counts[node]:
                counts[left] = self.left_count(node, counts[node])
                counts[right] = counts[node] - counts[left]
        return np.array(counts[: self.num_sources], dtype=np.int64)

    @cached_property
    def _parents(self) -> dict[int, int]:
        return {child: node for node, pair in enumerate(self.joins, start=self.num_sources) for child in pair}

    def count_of(self, source: int) -> Callable[[int], int]:
        """n -> samples of one source among the first n: only its way through the tree is walked."""
        way, child = [], source
        while child != self.root:
            if child not in self._parents:
                return lambda _n: 0
            node = self._parents[child]
            way.append((node, self.joins[node - self.num_sources][0] == child))
            child = node
        way.reverse()

        def count_at(n: int) -> int:
            for node, goes_left in way:
                left = self.left_count(node, n)
                n = left if goes_left else n - left
            return n

        return count_at

    def assign(self, first: int, num: int, span: int) -> tuple[np.ndarray, np.ndarray]:
        """The source of each of the samples first … first+num-1, and which of its own samples it is: int64 [num] each.

        All nodes of a level are split together. `span` is the span of the first sample.
        """
        source, index = np.empty(num, dtype=np.int64), np.empty(num, dtype=np.int64)
        places = np.arange(num, dtype=np.int64)
        node = np.full(num, self.root, dtype=np.int64)
        count = places + first
        while node.size:
            # Sorted by node, a node's samples lie side by side and their counts are consecutive.
            ends = np.append(np.flatnonzero(node[1:] != node[:-1]), node.size - 1)
            nodes, counts = np.concatenate([node, node[ends]]), np.concatenate([count, count[ends] + 1])
            lefts = self.left_counts(nodes, counts, span)
            left, following = lefts[: node.size], np.empty(node.size, dtype=np.int64)
            following[:-1] = left[1:]
            following[ends] = lefts[node.size :]
            goes_left = following > left
            inner = node - self.num_sources
            node = np.where(goes_left, self._left.take(inner), self._right.take(inner))
            count = np.where(goes_left, left, count - left)
            order = np.argsort(node.astype(np.int16) if self.root < 1 << 15 else node, kind="stable")
            node, count, places = node.take(order), count.take(order), places.take(order)
            leaves = int(np.searchsorted(node, self.num_sources))
            source[places[:leaves]], index[places[:leaves]] = node[:leaves], count[:leaves]
            node, count, places = node[leaves:], count[leaves:], places[leaves:]
        return source, index


def huffman(sources: list[int], totals: Sequence[int]) -> Joins:
    """Join the two lightest until one is left: short ways for heavy sources."""
    tree: Joins = []
    heap = [(totals[source], source) for source in sources]
    heapq.heapify(heap)
    while len(heap) > 1:
        (light, left), (heavy, right) = heapq.heappop(heap), heapq.heappop(heap)
        heapq.heappush(heap, (light + heavy, len(totals) + len(tree)))
        tree.append((left, right))
    return tree


def pairing(sources: list[int], totals: Sequence[int]) -> Joins:
    """Join neighbours in order of weight, level by level: least depth, and halves that are nearly equal."""
    tree: Joins = []
    level = [(totals[source], source) for source in sources]
    while len(level) > 1:
        level.sort()
        joined = level[len(level) // 2 * 2 :]
        for (light, left), (heavy, right) in zip(level[::2], level[1::2], strict=False):
            joined.append((light + heavy, len(totals) + len(tree)))
            tree.append((left, right))
        level = joined
    return tree
