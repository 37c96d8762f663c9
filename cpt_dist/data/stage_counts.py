"""Counts of a stage whose shares were changed on the way: quotas for each segment, joined without a seam.

A stage without changes is one segment and counts as its `Quotas` do. A change at sample x begins a new segment: the
samples before x stay what they were, each source goes on at its own count, and what rounding still owed at x is made
good at the segment's beginning, so the error does not grow with the number of changes. It knows no stage, source name
or file.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from cpt_dist.data.mixture import UNIT, Quotas, quantise

Knots = tuple[list[float], list[list[float]]]
"""Progress values of the stage and the shares of tokens there, [knot][source], as `mixture_knots` gives them."""


@dataclass(frozen=True)
class _Segment:
    start: int
    quotas: Quotas
    before: np.ndarray
    """int64 [source]: samples of the stage before the segment."""


class StageCounts:
    """Counts of each source at each prefix of a stage of `num_samples` samples.

    `schedules` are (first sample, knots), rising from sample 0; each holds until the next. `per_token` is the samples
    that a token of each source makes, [source]. Where a share is 0 from a change on, the source gets no more sample.
    """

    def __init__(self, num_samples: int, schedules: Sequence[tuple[int, Knots]], per_token: Sequence[Fraction]) -> None:
        self._per_token = list(per_token)
        self._num_samples = num_samples
        self._schedules = list(schedules)
        self.segments: list[_Segment] = []
        before = np.zeros(len(per_token), dtype=np.int64)
        owed: list[Fraction] | None = None
        nexts = [start for start, _ in schedules[1:]]
        for (start, knots), next_start in zip(schedules, [*nexts, None], strict=True):
            places, weights = self._sample_knots(knots, start)
            if owed is not None:
                places, weights = _with_owed(places, weights, owed)
            # To the end of the stage, also where a change follows: what a change alters begins with the change.
            quotas = Quotas(places, weights)
            self.segments.append(_Segment(start, quotas, before))
            if next_start is not None:
                counts = quotas.counts(next_start - start)
                targets = quotas.exact_targets(next_start - start)
                owed = [target - int(count) for target, count in zip(targets, counts, strict=True)]
                before = before + counts
        self._starts = [segment.start for segment in self.segments]
        self.error_bound = max(segment.quotas.error_bound for segment in self.segments)
        """Largest |count - target| that any source can have at any prefix, in samples."""

    def _sample_knots(self, knots: Knots, start: int) -> tuple[list[int], list[list[Fraction]]]:
        """The schedule from `start` to the stage's end: sample indices from `start`, and weights of samples there.

        Shares are of tokens; a sample of a source counts with its mean tokens a row, so they are divided by that.
        """
        progress, shares = knots
        if progress[-1] < 1:
            progress, shares = [*progress, 1.0], [*shares, shares[-1]]
        places = [int(Fraction(at) * self._num_samples + Fraction(1, 2)) for at in progress]
        weights = [[Fraction(share) * rate for share, rate in zip(row, self._per_token, strict=True)] for row in shares]
        if start == 0:
            return places, weights
        later = [number for number, place in enumerate(places) if place > start]
        rows = [_at(places, weights, start, after=True), *(weights[number] for number in later)]
        return [0, *(places[number] - start for number in later)], rows

    def counts(self, n: int) -> np.ndarray:
        """Samples of each source among the first n: int64 [source], summing to n. Raises IndexError past the end."""
        segment = self._segment(n)
        return segment.before + segment.quotas.counts(n - segment.start)

    def targets(self, n: int) -> np.ndarray:
        """What the shares ask for among the first n samples: float64 [source], in samples."""
        segment = self._segment(n)
        return segment.before + segment.quotas.targets(n - segment.start)

    def shares(self, n: int) -> list[float]:
        """Shares of tokens at sample n, [source], normalised; where they make a step at n, those behind it."""
        places, weights = self._sample_knots(self._schedules[self._segments_before(n)][1], 0)
        rates = zip(_at(places, weights, n, after=True), self._per_token, strict=True)
        tokens = [weight / rate if rate else weight for weight, rate in rates]
        return [float(share / sum(tokens)) for share in tokens]

    def split(self, first: int, num: int) -> list[tuple[int, int, np.ndarray]]:
        """Which source gives each of the samples first … first+num-1, as `Quotas.split`; a part for each segment."""
        result = []
        at = first
        while at < first + num:
            segment = self._segment(at)
            inside = at - segment.start
            size = min(first + num, self._end(segment)) - at
            for source, index, places in segment.quotas.split(inside, size):
                result.append((source, int(segment.before[source]) + index, places + (at - first)))
            at += size
        return result

    def place(self, source: int, index: int) -> int:
        """The n of a source's sample number `index` of the stage: `split` the other way round.

        Raises IndexError where the source has no such sample.
        """
        holding = bisect_right(self.segments, index, key=lambda segment: int(segment.before[source])) - 1
        segment = self.segments[max(0, holding)]
        n = segment.start + segment.quotas.place(source, index - int(segment.before[source]))
        if n >= self._end(segment):
            raise IndexError(f"source {source} has no sample {index} in the stage")
        return n

    def _segment(self, n: int) -> _Segment:
        return self.segments[self._segments_before(n)]

    def _segments_before(self, n: int) -> int:
        return max(0, bisect_right(self._starts, n) - 1)

    def _end(self, segment: _Segment) -> int:
        following = bisect_right(self._starts, segment.start)
        return self._starts[following] if following < len(self._starts) else self._num_samples


def _at(places: list[int], weights: list[list[Fraction]], sample: int, after: bool) -> list[Fraction]:
    """The weights, normalised as `Quotas` does, on the straight line at `sample`; at a step, behind or before it."""
    units = [[Fraction(unit, UNIT) for unit in quantise(row)] for row in weights]
    left = (bisect_right(places, sample) if after else _first_not_below(places, sample)) - 1
    left = max(0, left)
    if left == len(places) - 1 or places[left] == places[left + 1]:
        return units[left]
    share = Fraction(sample - places[left], places[left + 1] - places[left])
    return [x + (y - x) * share for x, y in zip(units[left], units[left + 1], strict=True)]


def _first_not_below(places: list[int], sample: int) -> int:
    return sum(place < sample for place in places)


def _with_owed(
    places: list[int], weights: list[list[Fraction]], owed: list[Fraction]
) -> tuple[list[int], list[list[Fraction]]]:
    """The schedule with `owed` samples more of each source, put onto its beginning.

    They are added as a triangle that falls to 0 within the first span: long enough that no weight falls below half of
    what it is. A source whose weight is 0 at the beginning gets nothing added and gives nothing back, and no room (a
    span too short) leaves the schedule as it is.
    """
    total = sum(weights[0])
    first = [weight / total for weight in weights[0]]
    owed = [value if weight else Fraction(0) for value, weight in zip(owed, first, strict=True)]
    largest = first.index(max(first))
    owed[largest] -= sum(owed)
    if not any(owed):
        return places, weights
    # The added weight at the beginning is 2 owed / length; half of the weight there must remain.
    length = max(-(-4 * abs(value) // weight) for value, weight in zip(owed, first, strict=True) if weight)
    span = next((number for number, place in enumerate(places) if place > 0), None)
    if span is None or length > places[span]:
        return places, weights
    length = int(length)
    behind = _at(places, weights, length, after=False)
    begin = [weight + 2 * value / length for weight, value in zip(first, owed, strict=True)]
    return [0, length, *places[span:]], [begin, behind, *weights[span:]]
