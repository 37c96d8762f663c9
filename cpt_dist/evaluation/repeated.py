"""The gain of one model over another where the measurement was repeated, such as with several seeds.

Items and seeds are both samples of what could have been asked and trained, so the interval of the mean has to hold for
other items and other seeds (crossed random effects). Pure functions of arrays; what was repeated is not known here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from cpt_dist.evaluation.paired_tests import is_binary
from cpt_dist.evaluation.statistics import Estimate, student_t_quantile

_NORMAL = NormalDist()


@dataclass(frozen=True)
class RepeatedGain:
    """A mean gain over repetitions and items."""

    value: float
    low: float
    high: float
    item_variance: float
    """Variance of the mean that comes from the choice of items."""
    seed_variance: float
    """Variance of the mean that comes from the choice of seeds."""
    critical: float
    """Half of the interval's width over the mean's standard error."""

    @property
    def gain(self) -> Estimate:
        """The mean with its interval."""
        return Estimate(self.value, self.low, self.high)

    @property
    def seed_share(self) -> float:
        """Share of the variance that more seeds, not more items, would lower."""
        total = self.item_variance + self.seed_variance
        return self.seed_variance / total if total else 0.0

    def detectable(self, confidence: float, power: float = 0.8) -> float:
        """Smallest true mean gain that as many items and seeds show with this power."""
        reach = self.critical + _NORMAL.inv_cdf(power)
        return reach * math.sqrt(self.item_variance + self.seed_variance)


def repeated_gain(gains: np.ndarray, confidence: float) -> RepeatedGain:
    """Mean of `gains` [repetitions, items] with an interval for new items and new repetitions.

    Its variance is a + b with a = s_i^2/n of the item means and b = s_s^2/k of the repetitions' means. The critical
    value is (a t_{n-1} + b t_{k-1}) / (a + b), which Cochran & Cox (1957, "Experimental Designs", section 4.14) give
    for two variances of unequal degrees of freedom; Satterthwaite's approximation was wrong in up to 7.7% of simulated
    trials of equal models at 95% (k = 3), this one in at most 5.3%, and in 0.4% where seeds don't matter, as noise is
    then counted in both. Where right-or-wrong answers hardly differ, the item variance is at least that of a share of
    (z^2/2) / (n + z^2) (Agresti & Coull 1998): few items that all agree must not look certain. Raises ValueError for
    fewer than 2 items or repetitions.
    """
    num_seeds, num_items = gains.shape
    if num_seeds < 2 or num_items < 2:
        raise ValueError(f"{num_seeds} repetitions of {num_items} items have no interval")
    value = float(gains.mean())
    spread = float(gains.mean(axis=0).var(ddof=1))
    if is_binary(gains):
        z = _NORMAL.inv_cdf((1 + confidence) / 2)
        spread = max(spread, z * z / 2 / (num_items + z * z))
    of_items = spread / num_items
    of_seeds = float(gains.mean(axis=1).var(ddof=1)) / num_seeds
    total = of_items + of_seeds
    critical = 0.0
    if total:
        by_items, by_seeds = (student_t_quantile((1 + confidence) / 2, count - 1) for count in (num_items, num_seeds))
        critical = (of_items * by_items + of_seeds * by_seeds) / total
    reach = critical * math.sqrt(total)
    return RepeatedGain(value, value - reach, value + reach, of_items, of_seeds, critical)
