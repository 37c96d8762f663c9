"""Tests and intervals for two models that answered the same items.

Closed forms for right-or-wrong answers (McNemar, Tango) and what says how many items are enough, all pure functions
of counts and arrays. `statistics.py` has the bootstrap and Wilson's interval, `sign_flip.py` the test for scores that
aren't right or wrong, `claims.py` what corrects for asking often.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np

_NORMAL = NormalDist()


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided exact p-value that two models are right equally often (McNemar 1947; binomial form).

    `only_first` items were answered rightly by the first model alone, `only_second` by the second alone. Items on
    which both agree say nothing; without any other p is 1.
    """
    discordant = only_first + only_second
    tail = sum(math.comb(discordant, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**discordant)


def tango_interval(only_first: int, only_second: int, num_items: int, confidence: float) -> tuple[float, float]:
    """Score interval of (share right by the first) - (share right by the second), paired.

    Tango 1998, Statistics in Medicine 17:891, section 3. It stays honest where a bootstrap has no width: if both
    models agree on all of n items it is ± z^2 / (n + z^2). Raises ValueError without items.
    """
    if num_items < 1:
        raise ValueError("a difference over no items has no interval")
    z = _NORMAL.inv_cdf((1 + confidence) / 2)
    n, b, c = num_items, only_first, only_second

    def score(difference: float) -> float:
        linear = -b - c + (2 * n - b + c) * difference
        root = math.sqrt(max(0.0, linear * linear + 8 * n * c * difference * (1 - difference)))
        second = max(0.0, (root - linear) / (4 * n))  # likeliest share of `only_second` under this difference
        variance = n * (2 * second + difference * (1 - difference))
        distance = b - c - n * difference
        return distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance)

    observed = (b - c) / n
    low = -1.0 if observed <= -1 else _root(lambda d: score(d) - z, -1.0, observed)
    high = 1.0 if observed >= 1 else _root(lambda d: score(d) + z, observed, 1.0)
    return low, high


def _root(falling: Callable[[float], float], low: float, high: float) -> float:
    """Where a falling function crosses 0 within [low, high], by bisection."""
    for _ in range(60):
        middle = (low + high) / 2
        if falling(middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def minimum_detectable_effect(variance: float, num_items: int, confidence: float, power: float = 0.8) -> float:
    """Smallest true mean difference that `num_items` paired items would show with this power.

    (z_{(1+confidence)/2} + z_power) sqrt(variance / n) (Miller 2024, "Adding Error Bars to Evals", arXiv 2411.00640,
    section 5); `variance` is that of one item's difference.
    """
    return (_NORMAL.inv_cdf((1 + confidence) / 2) + _NORMAL.inv_cdf(power)) * math.sqrt(variance / num_items)


def items_to_show(variance: float, distance: float, confidence: float, power: float = 0.8) -> int | None:
    """Paired items at which a mean `distance` away from what is to be excluded is shown with this power.

    The same formula solved for n. None where `distance` is 0: no number of items would do.
    """
    if distance == 0:
        return None
    z = _NORMAL.inv_cdf((1 + confidence) / 2) + _NORMAL.inv_cdf(power)
    return max(1, math.ceil(z * z * variance / distance**2))


def difference_variance(differences: np.ndarray, confidence: float) -> float:
    """Variance of one item's paired difference, never 0 for answers that are right or wrong.

    For differences of -1, 0 and 1 the share of items on which the models disagree is taken as (x + z^2/2) / (n + z^2)
    (Agresti & Coull 1998), so that few items that all agree don't look certain; else the sample's variance (at least
    2 items, else 0).
    """
    n = len(differences)
    mean = float(differences.mean())
    if is_binary(differences):
        z = _NORMAL.inv_cdf((1 + confidence) / 2)
        share = (int((differences != 0).sum()) + z * z / 2) / (n + z * z)
        return max(share - mean * mean, share / n)
    return float(differences.var(ddof=1)) if n > 1 else 0.0


def is_binary(differences: np.ndarray) -> bool:
    """Whether paired differences are those of right-or-wrong answers: all -1, 0 or 1."""
    return bool(np.isin(differences, (-1.0, 0.0, 1.0)).all())
