"""Whether a model is worse than an earlier one by more than a margin: yes, no, or not to be told from these items.

An item (a document, a task's question) is measured under both models, and whole items are resampled, so the comparison
is paired. A non-inferiority test by its confidence interval: Piaggio et al. 2012, "Reporting of Noninferiority and
Equivalence Randomized Trials", JAMA 308:24. Everything is a pure function of arrays and a seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cpt_dist.data.gate_decision import FAIL, PASS, UNDECIDED
from cpt_dist.evaluation import paired_tests, statistics
from cpt_dist.evaluation.bits_per_byte import RESOLUTION
from cpt_dist.evaluation.sign_flip import p_different
from cpt_dist.gate_config import MACRO


@dataclass(frozen=True)
class Measured:
    """A quantity of which less is better: the sum of `values` [items] over that of the positive `weights` [items]."""

    values: np.ndarray
    weights: np.ndarray
    ids: tuple[str, ...] = ()
    """Which items they are; empty where the weights tell (bytes of documents)."""

    def same_items(self, other: Measured | None) -> bool:
        """Whether the other one is of the same items, and so can be compared."""
        return other is not None and self.ids == other.ids and np.array_equal(self.weights, other.weights)


@dataclass(frozen=True)
class Comparison:
    """One quantity now against then; `difference` is now - then, so a rise is a loss."""

    name: str
    now: float
    then: float
    difference: float
    low: float | None
    high: float | None
    margin: float
    verdict: str

    def in_words(self) -> str:
        """The line for a log."""
        interval = "no interval" if self.low is None else f"[{self.low:+.4f}, {self.high:+.4f}]"
        return f"{self.name} {self.difference:+.4f} {interval}, margin {self.margin:g}: {self.verdict}"


def compare(
    now: Mapping[str, Measured],
    then: Mapping[str, Measured],
    margins: Mapping[str, float],
    *,
    confidence: float,
    num_resamples: int,
    seed: int,
) -> list[Comparison]:
    """A comparison for each of `margins`, whose names are those of `now` or macro, the mean over all of `now`.

    Both must hold the same items. pass: the whole interval lies at or below the margin; fail: above it; undecided:
    else, and where there are fewer effective items than could decide anything (`statistics.least_documents`), or the
    sign-flip test of the difference from the margin doesn't agree with the interval. For items that are right or wrong
    the interval is Tango's, which needs neither.
    """
    wanted = list(now) if MACRO in margins else [name for name in now if name in margins]
    differences, replicates, enough = {}, {}, {}
    for name in wanted:
        weights = now[name].weights
        differences[name] = beyond_rounding(now[name].values - then[name].values, then[name].values)
        seeds = statistics.source_seed(seed, name)
        replicates[name] = statistics.resampled_ratios(differences[name][None], weights, num_resamples, seeds)[0]
        enough[name] = statistics.effective_documents(weights.astype(np.float64))
    result = []
    for name, margin in margins.items():
        parts = wanted if name == MACRO else [name]
        values = [[float(m[part].values.sum() / m[part].weights.sum()) for part in parts] for m in (now, then)]
        mean_now, mean_then = (sum(one) / len(parts) for one in values)
        if len(parts) == 1 and _right_or_wrong(differences[name], now[name].weights):
            worse, better = int((differences[name] > 0).sum()), int((differences[name] < 0).sum())
            bounds = paired_tests.tango_interval(worse, better, len(differences[name]), confidence)
            verdict = _verdict(*bounds, margin)
            result.append(Comparison(name, mean_now, mean_then, mean_now - mean_then, *bounds, margin, verdict))
            continue
        effective = min(enough[part] for part in parts)
        low: float | None = None
        high: float | None = None
        if effective >= statistics.least_documents(confidence):
            mean = np.mean([replicates[part] for part in parts], axis=0)
            low, high = statistics.percentile_interval(mean, confidence, effective)
            if not (math.isfinite(low) and math.isfinite(high)):
                low = high = None
        # What each item adds to (difference - margin): alike signs of it are what the sign-flip test asks for.
        beyond = [(differences[one] - margin * now[one].weights) / now[one].weights.sum() for one in parts]
        p_value = p_different(np.concatenate(beyond), statistics.source_seed(seed, name), num_resamples)
        verdict = _verdict(low, high, margin) if p_value <= 1 - confidence else UNDECIDED
        result.append(Comparison(name, mean_now, mean_then, mean_now - mean_then, low, high, margin, verdict))
    return result


def beyond_rounding(differences: np.ndarray, values: np.ndarray) -> np.ndarray:
    """`differences` from `values`, 0 where they are within what rounding may do to a sum (`RESOLUTION`)."""
    return np.where(np.abs(differences) > RESOLUTION * np.abs(values), differences, 0.0)


def _right_or_wrong(differences: np.ndarray, weights: np.ndarray) -> bool:
    """Whether items counted alike were lost, won or stayed: a bootstrap of those has no width where they are few."""
    return bool(len(weights) and (weights == 1).all() and np.isin(differences, (-1.0, 0.0, 1.0)).all())


def _verdict(low: float | None, high: float | None, margin: float) -> str:
    if low is None or high is None:
        return UNDECIDED
    if high <= margin:
        return PASS
    return FAIL if low > margin else UNDECIDED


def verdict_of_all(comparisons: list[Comparison]) -> str:
    """fail where one fails, else undecided where one is undecided, else pass."""
    verdicts = {one.verdict for one in comparisons}
    return next((verdict for verdict in (FAIL, UNDECIDED) if verdict in verdicts), PASS)
