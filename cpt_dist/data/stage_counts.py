"""Counts of a stage whose shares were changed on the way: quotas for each segment, joined without a seam.

A stage without changes is one segment and counts as its `Quotas` do. A change at sample x begins a new segment: the
samples before x stay what they were, each source goes on at its own count, and what rounding still owed at x is made
good at the segment's beginning, so the error does not grow with the number of changes. A segment is made when a
sample behind its beginning is first asked for. It knows no stage, source name or file.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np

from cpt_dist.data.mixture import Quotas, as_integers, quantise

Knots = tuple[list[float], list[list[float]]]
"""Progress values of the stage and the shares of tokens there, [knot][source], as `mixture_knots` gives them."""

Weights = list[int]
"""Weights of the sources at one knot, on any scale: rationals are kept as whole numbers of the same ratios."""


@dataclass(frozen=True)
class _Segment:
    start: int
    quotas: Quotas
    before: np.ndarray
    """int64 [source]: samples of the stage before the segment."""


class _Schedule:
    """Shares over the progress of a stage as weights of samples at sample indices.

    Shares are of tokens; a sample of a source counts with its mean tokens a row, so they are divided by that, which is
    to say multiplied by `rates` (samples a token, as whole numbers in the right ratios).
    """

    def __init__(self, knots: Knots, num_samples: int, rates: Sequence[int]) -> None:
        progress, self._shares = knots
        if progress[-1] < 1:
            progress, self._shares = [*progress, 1.0], [*self._shares, self._shares[-1]]
        self._rates = rates
        pairs = [at.as_integer_ratio() for at in progress]
        self.places = [(2 * number * num_samples + whole) // (2 * whole) for number, whole in pairs]
        self._rows: dict[int, Weights] = {}
        self._units: dict[int, list[int]] = {}

    def row(self, knot: int) -> Weights:
        """The weights at a knot."""
        if knot not in self._rows:
            shares = as_integers(self._shares[knot])
            self._rows[knot] = [share * rate for share, rate in zip(shares, self._rates, strict=True)]
        return self._rows[knot]

    def _normalised(self, knot: int) -> list[int]:
        if knot not in self._units:
            self._units[knot] = quantise(self.row(knot))
        return self._units[knot]

    def at(self, sample: int) -> Weights:
        """The weights on the straight line at `sample`; where they make a step there, those behind it."""
        left = max(0, bisect_right(self.places, sample) - 1)
        if left == len(self.places) - 1 or self.places[left] == self.places[left + 1]:
            return self._normalised(left)
        begin, end = self.places[left], self.places[left + 1]
        return _between(self._normalised(left), self._normalised(left + 1), sample - begin, end - begin)

    def from_sample(self, start: int) -> tuple[list[int], list[Weights]]:
        """The schedule from `start` to the stage's end: sample indices from `start`, and the weights there."""
        if start == 0:
            return self.places, [self.row(knot) for knot in range(len(self.places))]
        later = range(bisect_right(self.places, start), len(self.places))
        return [0, *(self.places[knot] - start for knot in later)], [
            self.at(start),
            *(self.row(knot) for knot in later),
        ]


class StageCounts:
    """Counts of each source at each prefix of a stage of `num_samples` samples.

    `schedules` are (first sample, knots), rising from sample 0; each holds until the next. `per_token` is the samples
    that a token of each source makes, [source]. Where a share is 0 from a change on, the source gets no more sample.
    `earlier`, counts of the same stage under other schedules, gives its segments as far as the schedules are the same.
    """

    def __init__(
        self,
        num_samples: int,
        schedules: Sequence[tuple[int, Knots]],
        per_token: Sequence[Fraction],
        earlier: StageCounts | None = None,
    ) -> None:
        self._num_samples = num_samples
        self._knots = list(schedules)
        self._per_token = list(per_token)
        self._rates = as_integers(per_token)
        self._starts = [start for start, _ in schedules]
        self._schedules: dict[int, _Schedule] = {}
        self._segments: list[_Segment] = []
        if earlier is not None:
            pairs = zip(self._knots, earlier._knots, strict=False)
            same = next((number for number, (now, was) in enumerate(pairs) if now != was), len(earlier._knots))
            self._segments = earlier._segments[:same]
            self._schedules = {
                number: earlier._schedules[number] for number in range(same) if number in earlier._schedules
            }

    def _schedule(self, number: int) -> _Schedule:
        if number not in self._schedules:
            self._schedules[number] = _Schedule(self._knots[number][1], self._num_samples, self._rates)
        return self._schedules[number]

    def _segment(self, number: int) -> _Segment:
        """A segment; those before it are made first, as it begins with what they leave."""
        while len(self._segments) <= number:
            index = len(self._segments)
            start = self._starts[index]
            places, weights = self._schedule(index).from_sample(start)
            before = np.zeros(len(self._rates), dtype=np.int64)
            steady = quantise(weights[-1]) if _is_steady(places, weights) else None
            if index:
                last = self._segments[-1]
                counts = last.quotas.counts(start - last.start)
                targets, scale = last.quotas.exact_targets(start - last.start)
                owed = [target - count * scale for target, count in zip(targets, counts.tolist(), strict=True)]
                places, weights = _with_owed(places, weights, owed, scale)
                before = last.before + counts
            # To the end of the stage, also where a change follows: what a change alters begins with the change.
            self._segments.append(_Segment(start, Quotas(places, weights, steady), before))
        return self._segments[number]

    @cached_property
    def error_bound(self) -> float:
        """Largest |count - target| that any source can have at any prefix, in samples."""
        return max(self._segment(number).quotas.error_bound for number in range(len(self._starts)))

    def counts(self, n: int) -> np.ndarray:
        """Samples of each source among the first n: int64 [source], summing to n. Raises IndexError past the end."""
        if n > self._num_samples:
            raise IndexError(f"sample {n} is outside 0 to {self._num_samples}")
        segment = self._segment(self._segment_of(n))
        return segment.before + segment.quotas.counts(n - segment.start)

    def count_of(self, source: int, n: int) -> int:
        """`counts` of one source, for a tenth of the time where there are many; n isn't checked."""
        segment = self._segment(self._segment_of(n))
        return int(segment.before[source]) + segment.quotas.count_of(source)(n - segment.start)

    def at_most(self) -> np.ndarray:
        """Samples that no source exceeds in the whole stage: float64 [source], from the schedules alone.

        A segment's largest share of each source at any knot, all along it. Rounding puts a source at most half a sample
        off for each join of the tree above it, and as much is owed to the next segment: a sample for each source.
        """
        total = np.zeros(len(self._per_token))
        for number, (start, (_, shares)) in enumerate(self._knots):
            samples = np.array(shares) * np.array([float(rate) for rate in self._per_token])
            largest = (samples / samples.sum(axis=1, keepdims=True)).max(axis=0)
            total += (self._end(number) - start) * largest * (1 + 1e-9) + len(total)
        return total

    def targets(self, n: int) -> np.ndarray:
        """What the shares ask for among the first n samples: float64 [source], in samples."""
        segment = self._segment(self._segment_of(n))
        return segment.before + segment.quotas.targets(n - segment.start)

    def shares(self, n: int) -> list[float]:
        """Shares of tokens at sample n, [source], normalised; where they make a step at n, those behind it."""
        weights = zip(self._schedule(self._segment_of(n)).at(n), self._per_token, strict=True)
        tokens = [Fraction(weight) / rate if rate else Fraction(weight) for weight, rate in weights]
        return [float(share / sum(tokens)) for share in tokens]

    def assign(self, first: int, num: int) -> tuple[np.ndarray, np.ndarray]:
        """The source of each of the samples first … first+num-1, and which of its own samples it is: int64 [num] each.

        Own samples of the stage are counted from 0. Raises IndexError past the end.
        """
        if not 0 <= first <= first + num <= self._num_samples:
            raise IndexError(f"samples {first} to {first + num} are outside 0 to {self._num_samples}")
        parts: list[tuple[np.ndarray, np.ndarray]] = []
        at, stop = first, first + num
        while at < stop or not parts:
            number = self._segment_of(at)
            segment = self._segment(number)
            end = min(stop, self._end(number))
            source, index = segment.quotas.assign(at - segment.start, end - at)
            parts.append((source, index + segment.before[source]))
            at = end
        if len(parts) == 1:
            return parts[0]
        return np.concatenate([source for source, _ in parts]), np.concatenate([index for _, index in parts])

    def place(self, source: int, index: int) -> int:
        """The n of a source's sample number `index` of the stage: `assign` the other way round.

        Raises IndexError where the source has no such sample.
        """
        numbers = range(len(self._starts))
        holding = bisect_right(numbers, index, key=lambda number: int(self._segment(number).before[source])) - 1
        number = max(0, holding)
        segment = self._segment(number)
        n = segment.start + segment.quotas.place(source, index - int(segment.before[source]))
        if n >= self._end(number):
            raise IndexError(f"source {source} has no sample {index} in the stage")
        return n

    def _segment_of(self, n: int) -> int:
        return max(0, bisect_right(self._starts, n) - 1)

    def _end(self, number: int) -> int:
        return self._starts[number + 1] if number + 1 < len(self._starts) else self._num_samples


def _is_steady(places: list[int], weights: list[Weights]) -> bool:
    return len(places) == 2 and quantise(weights[0]) == quantise(weights[1])


def _between(before: Weights, after: Weights, part: int, whole: int) -> Weights:
    """The weights after `part` of `whole` of the way from one row to another of the same scale."""
    return [x * whole + (y - x) * part for x, y in zip(before, after, strict=True)]


def _with_owed(
    places: list[int], weights: list[Weights], owed: list[int], scale: int
) -> tuple[list[int], list[Weights]]:
    """The schedule with `owed` / `scale` samples more of each source, put onto its beginning.

    They are added as a triangle that falls to 0 within the first span: long enough that no weight falls below half of
    what it is. A source whose weight is 0 at the beginning gets nothing added and gives nothing back. Where the span is
    too short, a steady schedule is made longer than the stage, so that its first samples don't hang on how long the
    stage is, and another one stays as it is.
    """
    first, total = weights[0], sum(weights[0])
    owed = [value if weight else 0 for value, weight in zip(owed, first, strict=True)]
    largest = first.index(max(first))
    owed[largest] -= sum(owed)
    if not any(owed):
        return places, weights
    # The added weight at the beginning is 2 owed / length; half of the weight there must remain.
    length = max(
        -(-4 * abs(value) * total // (scale * weight)) for value, weight in zip(owed, first, strict=True) if weight
    )
    span = next((number for number, place in enumerate(places) if place > 0), None)
    if span is None:
        return places, weights
    if length > places[span]:
        if not _is_steady(places, weights):
            return places, weights
        places = [*places[:-1], length]
    begin = [weight * scale * length + 2 * value * total for weight, value in zip(first, owed, strict=True)]
    left = max(0, bisect_left(places, length) - 1)
    behind = quantise(weights[left])
    if left < len(places) - 1 and places[left] < places[left + 1]:
        behind = _between(behind, quantise(weights[left + 1]), length - places[left], places[left + 1] - places[left])
    return [0, length, *places[span:]], [begin, behind, *weights[span:]]
