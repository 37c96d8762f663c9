"""Exact integer quotas: how many of the first n samples each source gives, for weights that may change over time.

Each source has a real target T_i(n), the integral of its weight, and a binary tree of roundings turns the targets into
counts that sum to n, never fall, and stay within `Quotas.error_bound` of the target at every n; nothing is drawn and
nothing is remembered. The idea is the closed-form blend of grain (`transformations/mix.py`), put on a tree and on
weights that move (see docs/data.md for the proof).
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from math import isqrt

import numpy as np

UNIT = 1 << 60
"""Weights are whole multiples of 1/UNIT, so that every sum and every comparison can be made exactly."""

_TOLERANCE = 2.0**-47
"""Relative error allowed to the double-precision estimate: 64 roundings, about 5 times what its formula can lose."""

_Tree = list[tuple[int, int]]
"""Inner nodes as (left, right), children before parents: below the number of sources a child is a source, from there
on the inner node that many places up the list. The last one is the root."""


def quantise(weights: Sequence[Fraction | float | int]) -> list[int]:
    """Weights of any scale as whole numbers that sum to UNIT; the largest takes what rounding leaves.

    Raises ValueError if a weight is negative or all are 0.
    """
    exact = [Fraction(weight) for weight in weights]
    total = sum(exact)
    if total <= 0 or min(exact) < 0:
        raise ValueError(f"weights {[float(weight) for weight in exact]} must not be negative, nor all 0")
    units = [(2 * weight * UNIT + total) // (2 * total) for weight in exact]
    units[units.index(max(units))] += UNIT - sum(units)
    return units


class _Split:
    """Where a node's samples go: of its first N, floor(T_left(S^-1(N)) + 1/2) to its left child, the rest right.

    S is the node's target and T_left its left child's, both piecewise quadratic. Over a span of `length` samples, with
    weights falling or rising from w0 to w1 (and l0 to l1), S(u) = S_j + w0 u + (w1 - w0) u^2 / (2 length).
    The right child's part is N - left = T_right(S^-1(N)), rounded; as 0 <= T_left' <= S', one more N is one more for
    exactly one child.
    """

    def __init__(self, lengths: list[int], node: list[tuple[int, int]], left: list[tuple[int, int]]) -> None:
        self.spans = list(zip(lengths, node, left, strict=True))
        # Counts round up as well as down, so N may pass the last target; the last mix then goes on.
        open_spans = [span for span in self.spans if sum(span[1])]
        if open_spans:
            _, (w0, w1), (l0, l1) = open_spans[-1]
            end = ((w1, w1), (l1, l1)) if w1 else ((w0, w0), (l0, l0))
        else:
            end = ((1, 1), (0, 0))
        self.spans.append((1, *end))
        self.node_starts = [0]  # 2 UNIT S at the start of each span
        self.left_starts = [0]
        for length, node_weights, left_weights in self.spans[:-1]:
            self.node_starts.append(self.node_starts[-1] + length * sum(node_weights))
            self.left_starts.append(self.left_starts[-1] + length * sum(left_weights))
        self._node_start = np.array([start / (2 * UNIT) for start in self.node_starts])
        self._left_start = np.array([start / (2 * UNIT) for start in self.left_starts])
        self._node_slope = np.array([w0 / UNIT for _, (w0, _), _ in self.spans])
        self._left_slope = np.array([l0 / UNIT for _, _, (l0, _) in self.spans])
        self._node_bend = np.array([(w1 - w0) / (2 * UNIT * length) for length, (w0, w1), _ in self.spans])
        self._left_bend = np.array([(l1 - l0) / (2 * UNIT * length) for length, _, (l0, l1) in self.spans])

    def largest_shares(self) -> tuple[float, float]:
        """Largest share of the node that the left and the right child ever have (reached at the end of a span)."""
        pairs = [(w, x) for _, node, left in self.spans for w, x in zip(node, left, strict=True) if w]
        return max(x / w for w, x in pairs), max((w - x) / w for w, x in pairs)

    def exact(self, count: int) -> int:
        """Samples for the left child among the node's first `count`, in whole-number arithmetic (about 3 us)."""
        span = bisect_right(self.node_starts, 2 * UNIT * count) - 1
        length, (w0, w1), (l0, l1) = self.spans[span]
        rest = 2 * UNIT * count - self.node_starts[span]
        start = self.left_starts[span] + UNIT
        if l0 * w1 == l1 * w0:  # the same mix all over the span: no curve
            node, left = w0 + w1, l0 + l1
            return (start * node + rest * left) // (2 * UNIT * node)
        rise, left_rise = w1 - w0, l1 - l0
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

    def left_counts(self, first: int, num: int) -> np.ndarray:
        """`exact` of first … first+num-1 as int64 [num].

        Doubles decide where they are surely on one side of a whole number, `exact` decides the few others; so the
        result does not hang on how a host rounds. The root is taken as 2d / (w0 + sqrt(w0^2 + 4 bend d)), which loses
        no digits when the bend is small.
        """
        counts = np.arange(first, first + num, dtype=np.int64)
        span = np.searchsorted(self._node_start, counts, side="right") - 1
        rest = np.maximum(counts - self._node_start[span], 0.0)
        slope = self._node_slope[span]
        below = slope + np.sqrt(np.maximum(slope * slope + 4.0 * self._node_bend[span] * rest, 0.0))
        time = np.divide(2.0 * rest, below, out=np.zeros(num), where=below > 0)
        value = self._left_start[span] + time * (self._left_slope[span] + self._left_bend[span] * time) + 0.5
        result = np.floor(value).astype(np.int64)
        unsure = np.flatnonzero(np.abs(value - np.rint(value)) <= _TOLERANCE * (counts + 1.0))
        for place in unsure.tolist():
            result[place] = self.exact(first + place)
        return result


class Quotas:
    """Counts of `num_sources` sources at each prefix of a stage of `num_samples` samples.

    `knots` are sample indices 0 = x_0 <= … <= x_m = num_samples and `weights` [knot][source] the shares of samples
    there, on any scale; between two knots they lie on a straight line, and two knots at one index make a step.
    Raises ValueError for knots that fall, or weights that `quantise` refuses.
    """

    def __init__(self, knots: Sequence[int], weights: Sequence[Sequence[Fraction | float | int]]) -> None:
        if len(knots) < 2 or knots[0] != 0 or list(knots) != sorted(knots) or len(weights) != len(knots):
            raise ValueError(f"knots {list(knots)} must rise from 0 and have one row of weights each")
        self.num_samples = knots[-1]
        self.num_sources = len(weights[0])
        units = [quantise(row) for row in weights]
        spans = [j for j in range(len(knots) - 1) if knots[j + 1] > knots[j]]
        self._lengths = [knots[j + 1] - knots[j] for j in spans]
        self._weights = [[(units[j][i], units[j + 1][i]) for j in spans] for i in range(self.num_sources)]
        self._starts = np.array([knots[j] for j in spans] or [0], dtype=np.int64)
        self._plan_targets()
        self._tree: _Tree = []
        self._splits: list[_Split] = []
        self._root = 0
        self.error_bound = 0.0
        """Largest |count - target| that any source can have at any prefix, in samples."""
        totals = [sum(n * sum(w) for n, w in zip(self._lengths, row, strict=True)) for row in self._weights]
        active = [source for source in range(self.num_sources) if totals[source]]
        if len(active) == 1:
            self._root = active[0]
        elif active:
            trees = [_huffman(active, totals), _pairing(active, totals)]
            built = [self._build(tree) for tree in trees]
            bounds = [_bound(tree, splits, self.num_sources) for tree, splits in zip(trees, built, strict=True)]
            best = bounds.index(min(bounds))
            self._tree, self._splits, self.error_bound = trees[best], built[best], bounds[best]
            self._root = self.num_sources + len(self._tree) - 1

    def _plan_targets(self) -> None:
        """Tables [source, span] of the targets: value at the start of the span, slope, bend."""
        starts = []
        for row in self._weights:
            start = [0]
            for length, pair in zip(self._lengths, row, strict=True):
                start.append(start[-1] + length * sum(pair))
            starts.append([value / (2 * UNIT) for value in start[: max(1, len(row))]])
        self._target_start = np.array(starts)
        self._target_slope = np.array([[w0 / UNIT for w0, _ in row] or [0.0] for row in self._weights])
        self._target_bend = np.array(
            [
                [(w1 - w0) / (2 * UNIT * n) for n, (w0, w1) in zip(self._lengths, row, strict=True)] or [0.0]
                for row in self._weights
            ]
        )

    def _build(self, tree: _Tree) -> list[_Split]:
        weights, splits = list(self._weights), []
        for left, right in tree:
            weights.append([(a + c, b + d) for (a, b), (c, d) in zip(weights[left], weights[right], strict=True)])
            splits.append(_Split(self._lengths, weights[-1], weights[left]))
        return splits

    def targets(self, n: int | np.ndarray) -> np.ndarray:
        """Real targets T_i(n) in samples: float64 [source], or [n, source] for an array n of prefixes."""
        prefix = np.asarray(n, dtype=np.int64)
        span = np.searchsorted(self._starts, prefix, side="right") - 1
        time = (prefix - self._starts[span]).astype(np.float64)
        slope, bend = self._target_slope[:, span], self._target_bend[:, span]
        return (self._target_start[:, span] + time * (slope + bend * time)).T

    def exact_targets(self, n: int) -> list[Fraction]:
        """`targets` of one prefix without rounding: [source], in samples."""
        self._check(n)
        result = [Fraction(0)] * self.num_sources
        for span, length in enumerate(self._lengths):
            part = min(max(n - int(self._starts[span]), 0), length)
            for source, row in enumerate(self._weights):
                w0, w1 = row[span]
                result[source] += Fraction(2 * part * w0 * length + part * part * (w1 - w0), 2 * length * UNIT)
        return result

    def counts(self, n: int) -> np.ndarray:
        """Samples of each source among the first n: int64 [source], summing to n. Raises IndexError past the end."""
        self._check(n)
        result = np.zeros(self.num_sources, dtype=np.int64)
        stack = [(self._root, n)]
        while stack:
            node, count = stack.pop()
            if node < self.num_sources:
                result[node] = count
                continue
            left_child, right_child = self._tree[node - self.num_sources]
            left = self._splits[node - self.num_sources].exact(count)
            stack += [(left_child, left), (right_child, count - left)]
        return result

    def split(self, first: int, num: int) -> list[tuple[int, int, np.ndarray]]:
        """Which source gives each of the samples first … first+num-1.

        One (source, index, places) for each source that gives any: `places` (int64, rising, within 0 … num-1) are its
        samples, and they are its own samples number index, index+1, … of the stage. Raises IndexError past the end.
        """
        self._check(first)
        self._check(first + num)
        result = []
        stack = [(self._root, first, np.arange(num, dtype=np.int64))]
        while stack:
            node, start, places = stack.pop()
            if not places.size:
                continue
            if node < self.num_sources:
                result.append((node, start, places))
                continue
            left_child, right_child = self._tree[node - self.num_sources]
            left = self._splits[node - self.num_sources].left_counts(start, places.size + 1)
            goes_left = left[1:] > left[:-1]
            begin = int(left[0])
            stack += [(left_child, begin, places[goes_left]), (right_child, start - begin, places[~goes_left])]
        return sorted(result, key=lambda part: part[0])

    def place(self, source: int, index: int) -> int:
        """The n of a source's sample number `index` of the stage: `split` the other way round, by bisection.

        Raises IndexError where the source has no such sample.
        """
        # counts(n)[source] rises by steps of one, so the first n at which it exceeds `index` is unique.
        found = bisect_right(range(self.num_samples + 1), index, key=lambda n: self.counts(n)[source]) - 1
        if index < 0 or found >= self.num_samples:
            raise IndexError(f"source {source} has no sample {index} in the stage")
        return found

    def _check(self, n: int) -> None:
        if not 0 <= n <= self.num_samples:
            raise IndexError(f"sample {n} is outside 0 to {self.num_samples}")


def _bound(tree: _Tree, splits: list[_Split], num_sources: int) -> float:
    """Worst |count - target| over the sources: 0 at the root, 1/2 + (child's largest share) * (node's error) below."""
    errors = [0.0] * (num_sources + len(tree))
    for number in range(len(tree) - 1, -1, -1):
        for child, share in zip(tree[number], splits[number].largest_shares(), strict=True):
            errors[child] = 0.5 + share * errors[num_sources + number]
    return max(errors[:num_sources])


def _huffman(sources: list[int], totals: list[int]) -> _Tree:
    """Join the two lightest until one is left: short ways for heavy sources."""
    tree: _Tree = []
    heap = [(totals[source], source) for source in sources]
    heapq.heapify(heap)
    while len(heap) > 1:
        (light, left), (heavy, right) = heapq.heappop(heap), heapq.heappop(heap)
        heapq.heappush(heap, (light + heavy, len(totals) + len(tree)))
        tree.append((left, right))
    return tree


def _pairing(sources: list[int], totals: list[int]) -> _Tree:
    """Join neighbours in order of weight, level by level: least depth, and halves that are nearly equal."""
    tree: _Tree = []
    level = [(totals[source], source) for source in sources]
    while len(level) > 1:
        level.sort()
        joined = level[len(level) // 2 * 2 :]
        for (light, left), (heavy, right) in zip(level[::2], level[1::2], strict=False):
            joined.append((light + heavy, len(totals) + len(tree)))
            tree.append((left, right))
        level = joined
    return tree


def worst_error(quotas: Quotas) -> float:
    """Largest |count - target| over all prefixes and sources, by looking at each (memory: samples x sources)."""
    steps = np.zeros((quotas.num_samples + 1, quotas.num_sources), dtype=np.int64)
    for source, _, places in quotas.split(0, quotas.num_samples):
        steps[places + 1, source] = 1
    return float(np.abs(steps.cumsum(axis=0) - quotas.targets(np.arange(quotas.num_samples + 1))).max())


def main() -> None:
    """Print bound and measured worst error for the mixtures of docs/data.md."""
    generator = np.random.default_rng(5)
    mixtures = {
        "3 (7:2:1)": [7.0, 2.0, 1.0],
        "10 (Dirichlet)": generator.dirichlet(np.ones(10)).tolist(),
        "100 (Zipf)": [1 / rank for rank in range(1, 101)],
    }
    num_samples = 20_000
    print(f"{'sources':>16} {'weights':>10} {'bound':>7} {'measured':>9}   worst |count - target| in samples")
    for name, weights in mixtures.items():
        for kind, end in (("constant", weights), ("ramp", weights[::-1])):
            quotas = Quotas([0, num_samples], [weights, end])
            print(f"{name:>16} {kind:>10} {quotas.error_bound:7.3f} {worst_error(quotas):9.3f}")


if __name__ == "__main__":
    main()
