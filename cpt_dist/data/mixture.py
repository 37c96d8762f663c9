"""Exact integer quotas: how many of the first n samples each source gives, for weights that may change over time.

Each source has a real target T_i(n), the integral of its weight, and a binary tree of roundings turns the targets into
counts that sum to n, never fall, and stay within `Quotas.error_bound` of the target at every n; nothing is drawn and
nothing is remembered. The idea is the closed-form blend of grain (`transformations/mix.py`), put on a tree and on
weights that move (see docs/mixtures.md for the proof).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cached_property
from math import lcm

import numpy as np

from cpt_dist.data.rounding_tree import UNIT, RoundingTree, huffman, pairing

_ENOUGH_BITS = 192
"""Weights that differ in the first 192 binary digits of their sum are told apart by them alone (see `quantise`)."""


def as_integers(weights: Sequence[Fraction | float | int]) -> list[int]:
    """Whole numbers in the exact ratios of `weights`."""
    pairs = [weight.as_integer_ratio() for weight in weights]
    common = lcm(*{denominator for _, denominator in pairs})
    return [numerator * (common // denominator) for numerator, denominator in pairs]


def quantise(weights: Sequence[Fraction | float | int]) -> list[int]:
    """Weights of any scale as whole numbers that sum to UNIT; the largest takes what rounding leaves.

    Raises ValueError if a weight is negative or all are 0.
    """
    exact = as_integers(weights)
    total = sum(exact)
    if total <= 0 or min(exact) < 0:
        raise ValueError(f"weights {[float(weight) for weight in weights]} must not be negative, nor all 0")
    spare = total.bit_length() - _ENOUGH_BITS
    if spare > 0:
        # Denominators of many sources make numbers of thousands of digits. Cut off, a weight and the total lie within
        # [cut, cut + 1]: where the smallest and the largest quotient round alike, so does the exact one.
        cut, twice = total >> spare, 2 * UNIT
        units = [(twice * (weight >> spare) + cut + 1) // (2 * cut + 2) for weight in exact]
        for number, weight in enumerate(exact):
            if (twice * ((weight >> spare) + 1) + cut) // (2 * cut) != units[number]:
                units[number] = (twice * weight + total) // (2 * total)
    else:
        units = [(2 * weight * UNIT + total) // (2 * total) for weight in exact]
    units[units.index(max(units))] += UNIT - sum(units)
    return units


class Quotas:
    """Counts of `num_sources` sources at each prefix of a stage of `num_samples` samples.

    `knots` are sample indices 0 = x_0 <= … <= x_m = num_samples and `weights` [knot][source] the shares of samples
    there, on any scale; between two knots they lie on a straight line, and two knots at one index make a step.
    `heaviness` [source], where given, says which sources are heavy instead of the areas under their weights, which hang
    on the number of samples.
    Raises ValueError for knots that fall, or weights that `quantise` refuses.
    """

    def __init__(
        self,
        knots: Sequence[int],
        weights: Sequence[Sequence[Fraction | float | int]],
        heaviness: Sequence[int] | None = None,
    ) -> None:
        if len(knots) < 2 or knots[0] != 0 or list(knots) != sorted(knots) or len(weights) != len(knots):
            raise ValueError(f"knots {list(knots)} must rise from 0 and have one row of weights each")
        self.num_samples = knots[-1]
        self.num_sources = len(weights[0])
        units = np.array([quantise(row) for row in weights], dtype=np.int64).T
        spans = [j for j in range(len(knots) - 1) if knots[j + 1] > knots[j]]
        self._lengths = [knots[j + 1] - knots[j] for j in spans]
        self._begins = [knots[j] for j in spans] or [0]
        self._weights = np.stack([units[:, spans], units[:, [j + 1 for j in spans]]], axis=2)
        # Python integers: 2 UNIT times the targets at the beginning of each span and at the end [source, span + 1].
        self._starts = np.zeros((self.num_sources, len(spans) + 1), dtype=object)
        areas = self._weights.sum(axis=2).astype(object) * np.array(self._lengths, dtype=object)
        np.cumsum(areas, axis=1, out=self._starts[:, 1:])
        totals = self._starts[:, -1].tolist()
        active = [source for source in range(self.num_sources) if totals[source]]
        self._only = active[0] if active else 0
        self._tree: RoundingTree | None = None
        if len(active) > 1:
            heavy = totals if heaviness is None else list(heaviness)
            joins = [huffman(active, heavy), pairing(active, heavy)]
            trees = [RoundingTree(join, self._weights, self._starts, self._lengths) for join in joins]
            self._tree = min(trees, key=lambda tree: tree.error_bound)

    @property
    def error_bound(self) -> float:
        """Largest |count - target| that any source can have at any prefix, in samples."""
        return self._tree.error_bound if self._tree else 0.0

    @cached_property
    def _target_tables(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """First sample of each span [span], and [source, span] value of the target there, slope, bend."""
        if not self._lengths:
            return np.zeros(1, dtype=np.int64), *np.zeros((3, self.num_sources, 1))
        start = (self._starts[:, :-1] / (2 * UNIT)).astype(np.float64)
        bend = (self._weights[:, :, 1] - self._weights[:, :, 0]) / (2.0 * UNIT * np.array(self._lengths, dtype=float))
        return np.array(self._begins, dtype=np.int64), start, self._weights[:, :, 0] / UNIT, bend

    def targets(self, n: int | np.ndarray) -> np.ndarray:
        """Real targets T_i(n) in samples: float64 [source], or [n, source] for an array n of prefixes."""
        begins, start, slope, bend = self._target_tables
        prefix = np.asarray(n, dtype=np.int64)
        span = np.searchsorted(begins, prefix, side="right") - 1
        time = (prefix - begins[span]).astype(np.float64)
        return (start[:, span] + time * (slope[:, span] + bend[:, span] * time)).T

    def exact_targets(self, n: int) -> tuple[list[int], int]:
        """`targets` of one prefix without rounding: numerators [source] and their common denominator."""
        self._check(n)
        if not self._lengths:
            return [0] * self.num_sources, 1
        span = self._span(n)
        length, part = self._lengths[span], n - self._begins[span]
        starts, pairs = self._starts[:, span].tolist(), self._weights[:, span].tolist()
        scale = 2 * part * length
        numerators = [
            start * length + scale * w0 + part * part * (w1 - w0) for start, (w0, w1) in zip(starts, pairs, strict=True)
        ]
        return numerators, 2 * length * UNIT

    def counts(self, n: int) -> np.ndarray:
        """Samples of each source among the first n: int64 [source], summing to n. Raises IndexError past the end."""
        self._check(n)
        if self._tree:
            return self._tree.counts(n)
        result = np.zeros(self.num_sources, dtype=np.int64)
        result[self._only] = n
        return result

    def count_of(self, source: int) -> Callable[[int], int]:
        """n -> `counts` of one source, for a tenth of the time where there are many; n isn't checked."""
        if self._tree:
            return self._tree.count_of(source)
        return (lambda n: n) if source == self._only else (lambda _n: 0)

    def assign(self, first: int, num: int) -> tuple[np.ndarray, np.ndarray]:
        """The source of each of the samples first … first+num-1, and which of its own samples it is: int64 [num] each.

        Own samples of the stage are counted from 0. Raises IndexError past the end.
        """
        self._check(first)
        self._check(first + num)
        if self._tree:
            return self._tree.assign(first, num, self._span(first))
        return np.full(num, self._only, dtype=np.int64), np.arange(first, first + num, dtype=np.int64)

    def split(self, first: int, num: int) -> list[tuple[int, int, np.ndarray]]:
        """`assign` by source: one (source, index, places) for each source that gives any of the samples.

        `places` (int64, rising, within 0 … num-1) are its samples, and they are its own samples number index,
        index+1, … of the stage. Raises IndexError past the end.
        """
        source, index = self.assign(first, num)
        order = np.argsort(source, kind="stable")
        present, begins = np.unique(source[order], return_index=True)
        return (
            [
                (number, int(index[places[0]]), places)
                for number, places in zip(present.tolist(), np.split(order, begins[1:]), strict=True)
            ]
            if num
            else []
        )

    def place(self, source: int, index: int) -> int:
        """The n of a source's sample number `index` of the stage: `assign` the other way round, by bisection.

        Raises IndexError where the source has no such sample.
        """
        # The count rises by steps of one, so the first n at which it exceeds `index` is unique.
        found = bisect_right(range(self.num_samples + 1), index, key=self.count_of(source)) - 1
        if index < 0 or found >= self.num_samples:
            raise IndexError(f"source {source} has no sample {index} in the stage")
        return found

    def _span(self, n: int) -> int:
        return bisect_right(self._begins, n) - 1

    def _check(self, n: int) -> None:
        if not 0 <= n <= self.num_samples:
            raise IndexError(f"sample {n} is outside 0 to {self.num_samples}")


def worst_error(quotas: Quotas) -> float:
    """Largest |count - target| over all prefixes and sources, by looking at each (memory: samples x sources)."""
    steps = np.zeros((quotas.num_samples + 1, quotas.num_sources), dtype=np.int64)
    source, _ = quotas.assign(0, quotas.num_samples)
    steps[np.arange(1, len(steps)), source] = 1
    return float(np.abs(steps.cumsum(axis=0) - quotas.targets(np.arange(quotas.num_samples + 1))).max())


def main() -> None:
    """Print bound and measured worst error for the mixtures of docs/mixtures.md."""
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
