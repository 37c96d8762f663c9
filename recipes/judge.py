"""From a difference for each seed to reproduced, not reproduced or undecided.

The rule is fixed before anything is measured: Student's t interval at 90% over the seeds' paired differences, against
a margin that the recipe states. Three seeds are few, so `undecided` is a common and honest answer. It knows nothing
of what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from cpt_dist.evaluation.statistics import student_t_quantile
from cpt_dist.files import write_json

CONFIDENCE = 0.9
REPRODUCED, NOT_REPRODUCED, UNDECIDED = "reproduced", "not reproduced", "undecided"


@dataclass(frozen=True)
class Claim:
    """A finding, and what each seed says about it."""

    text: str
    source: str
    """Where it is from."""
    differences: tuple[float, ...]
    """One a seed, in nats per token, between two arms of that seed on the same documents; positive supports it."""
    margin: float = 0.0
    """The difference has to exceed it; for `equal` its size has to stay below it."""
    equal: bool = False
    """The claim is that there is no difference worth speaking of."""

    def interval(self) -> tuple[float, float] | None:
        """Student's t interval of the mean over seeds; None for a single seed."""
        count = len(self.differences)
        if count < 2:
            return None
        values = np.array(self.differences)
        t = student_t_quantile((1 + CONFIDENCE) / 2, count - 1)
        reach = t * float(values.std(ddof=1)) / math.sqrt(count)
        return float(values.mean()) - reach, float(values.mean()) + reach

    def outcome(self) -> str:
        """Reproduced where the whole interval lies where the claim says, not reproduced where none of it does."""
        interval = self.interval()
        if interval is None or not all(map(math.isfinite, interval)):
            return UNDECIDED
        low, high = interval
        if self.equal:
            if -self.margin < low and high < self.margin:
                return REPRODUCED
            return NOT_REPRODUCED if low >= self.margin or high <= -self.margin else UNDECIDED
        if low > self.margin:
            return REPRODUCED
        return NOT_REPRODUCED if high <= self.margin else UNDECIDED


def conclude(
    name: str, claims: Sequence[Claim], table: Table, measured: dict[str, Any], folder: Path, console: Console
) -> list[str]:
    """Print what was measured and what became of each claim, write `folder`/`name`.json, give the outcomes."""
    console.print(table)
    verdicts = Table(
        title=f"Claims, over {len(claims[0].differences)} seeds ({CONFIDENCE:.0%} interval, nats per token)"
    )
    for column in ("claim", "source", "mean", "interval", "outcome"):
        verdicts.add_column(column, overflow="fold")
    records = []
    for claim in claims:
        interval, mean = claim.interval(), float(np.mean(claim.differences))
        shown = "none" if interval is None else f"{interval[0]:+.4f} to {interval[1]:+.4f}"
        bar = f" (within ±{claim.margin:g})" if claim.equal else f" (above {claim.margin:g})" if claim.margin else ""
        verdicts.add_row(claim.text + bar, claim.source, f"{mean:+.4f}", shown, claim.outcome())
        records.append(asdict(claim) | {"mean": mean, "interval": interval, "outcome": claim.outcome()})
    console.print(verdicts)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", {"recipe": name, "confidence": CONFIDENCE, "claims": records, **measured})
    console.print(f"written: {folder / f'{name}.json'}", soft_wrap=True)
    return [claim.outcome() for claim in claims]
