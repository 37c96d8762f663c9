"""Ledger entries that take samples out of a run: a step with bad numbers, or the window that led to them.

The samples keep their numbers and every later one its row; the steps that would read them change no weight. So a run
with the same ledger skips the same samples and has the same weights. Who decides this is in `cpt_dist/training`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import numpy as np

STEP, WINDOW, START = "step", "window", "start"


@dataclass(frozen=True)
class Skip:
    """Samples `n_start` to `n_stop` - 1, whole steps, change no weight."""

    kind: ClassVar[str] = "skip"

    n_start: int
    n_stop: int
    what: str = STEP
    """step: one whose own numbers were bad; window: what is skipped after a rewind; start: what lies before the
    stage that the run began with."""
    reason: str = ""
    """What was decided and why, in a sentence."""
    evidence: dict[str, Any] = field(default_factory=dict)
    """The measurements behind the decision, as JSON."""

    @property
    def effect(self) -> dict[str, Any]:
        """The part that the trained weights depend on."""
        return {"n_start": self.n_start, "n_stop": self.n_stop}

    @property
    def back_to(self) -> int | None:
        """Of a window the sample that the run went back to; None of other skips."""
        return int(self.evidence.get("position", self.n_start)) if self.what == WINDOW else None

    def record(self) -> dict[str, Any]:
        """The entry as JSON."""
        return asdict(self)


class SkippedSamples:
    """The union of all skips, for look-ups."""

    def __init__(self, skips: Iterable[Skip]) -> None:
        self.ranges: list[tuple[int, int]] = []
        """Disjoint [start, stop), rising."""
        for start, stop in sorted((skip.n_start, skip.n_stop) for skip in skips):
            if self.ranges and start <= self.ranges[-1][1]:
                self.ranges[-1] = (self.ranges[-1][0], max(stop, self.ranges[-1][1]))
            else:
                self.ranges.append((start, stop))

    def __contains__(self, n: int) -> bool:
        at = bisect_right(self.ranges, n, key=lambda one: one[0]) - 1
        return at >= 0 and n < self.ranges[at][1]

    def without(self, measure: Callable[[int], np.ndarray], n: int) -> np.ndarray:
        """`measure(n)`, a sum over the first n samples, without what the skipped ones give to it."""
        skipped = [measure(stop) - measure(start) for start, stop in self.before(n)]
        return measure(n) - sum(skipped, start=np.zeros_like(measure(0)))

    def before(self, n: int) -> list[tuple[int, int]]:
        """The parts of the ranges that lie before sample n."""
        return [(start, min(stop, n)) for start, stop in self.ranges if start < n]


def skip_problems(skips: Sequence[Skip], boundaries: Callable[[int], bool], num_samples: int) -> list[str]:
    """A line for each skip that is empty, leaves the plan or cuts a step; `boundaries(n)`: does a step begin at n."""
    return [
        f"ledger entry that skips samples {skip.n_start} to {skip.n_stop - 1}: it must hold whole steps within 0 to "
        f"{num_samples - 1}; restore the run's ledger.jsonl"
        for skip in skips
        if not 0 <= skip.n_start < skip.n_stop <= num_samples
        or not boundaries(skip.n_start)
        or not (skip.n_stop == num_samples or boundaries(skip.n_stop))
    ]
