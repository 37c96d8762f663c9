"""Intervals and outcomes for ratios of sums over documents.

Bits per byte is a sum of nats over a sum of bytes, and a document's tokens aren't independent of each other, so
whole documents are resampled (cluster bootstrap: Efron & Tibshirani 1993, chapter 8; paired over models: Koehn 2004,
"Statistical Significance Tests for Machine Translation Evaluation", section 3). Everything here is a pure function
of arrays and a seed; nothing here knows what is measured, and no correction is made for looking at many sources.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import xxhash

IMPROVED, WORSE, UNDECIDED = "improved", "worse", "undecided"
_CHUNK_ELEMENTS = 1 << 22
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Estimate:
    """A measured value with its interval; `low` and `high` are None where the data gives no interval."""

    value: float
    low: float | None
    high: float | None

    def negated(self) -> Estimate:
        """The same for the quantity with the other sign, such as gain for a difference."""
        if self.low is None or self.high is None:
            return Estimate(-self.value, None, None)
        return Estimate(-self.value, -self.high, -self.low)


def source_seed(seed: int, name: str) -> list[int]:
    """Seed of a source's resamples: sources get independent ones, whatever others are evaluated beside them."""
    return [seed, xxhash.xxh3_64_intdigest(name.encode())]


def ratio(numerators: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Sum over documents of `numerators` [quantities, documents] over that of `denominator` [documents]."""
    return numerators.sum(axis=1) / denominator.sum()


def resampled_ratios(
    numerators: np.ndarray, denominator: np.ndarray, num_resamples: int, seed: int | list[int]
) -> np.ndarray:
    """Ratios of sums in `num_resamples` bootstrap samples of the documents, [quantities, num_resamples].

    `numerators` is [quantities, documents], `denominator` [documents] and positive. All quantities see the same
    resamples, which makes the difference of two of them the paired bootstrap of that difference.
    """
    num_documents = len(denominator)
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK_ELEMENTS // num_documents)
    chunks = []
    for start in range(0, num_resamples, rows):
        picks = generator.integers(0, num_documents, size=(min(rows, num_resamples - start), num_documents))
        bottom = denominator[picks].sum(axis=1)
        chunks.append(np.stack([row[picks].sum(axis=1) for row in numerators]) / bottom)
    return np.concatenate(chunks, axis=1)


def effective_documents(weights: np.ndarray) -> float:
    """Kish's effective number of documents, (sum w)^2 / sum w^2 (Kish 1965, "Survey Sampling", section 11.7).

    One huge document among many small ones decides a ratio of sums almost alone; counting it as one of many would
    claim a certainty that isn't there. `weights` [documents] are the documents' bytes.
    """
    return float(weights.sum()) ** 2 / float(np.square(weights, dtype=np.float64).sum())


def student_t_quantile(probability: float, degrees: float) -> float:
    """Quantile of Student's t for `degrees` >= 1 of freedom.

    With t = sqrt(degrees) tan(angle) the density is cos(angle)^(degrees - 1), which is summed on a grid; the error
    is below 1e-4 of the value for probabilities of 0.0005 to 0.9995.
    """
    if degrees > 1000:
        return _NORMAL.inv_cdf(probability)
    angles = np.linspace(-math.pi / 2, math.pi / 2, 20_001)
    density = np.cos(angles).clip(0) ** (degrees - 1)
    cumulative = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    angle = np.interp(probability, cumulative / cumulative[-1], angles)
    return float(math.sqrt(degrees) * math.tan(angle))


def percentile_interval(replicates: np.ndarray, confidence: float, num_effective: float) -> tuple[float, float]:
    """Expanded percentile interval of bootstrap `replicates` [num_resamples].

    The plain percentile interval is too narrow for few documents, by sqrt((n-1)/n) and by normal instead of t
    quantiles; the tail is therefore Phi(-sqrt(n/(n-1)) t_{n-1}) instead of (1 - confidence) / 2 (Hesterberg 2015,
    "What Teachers Should Know About the Bootstrap", The American Statistician 69:4, expanded percentile interval).
    `num_effective` is n, here the effective number of documents; values below 2 count as 2.
    """
    n = max(2.0, num_effective)
    t = student_t_quantile((1 + confidence) / 2, n - 1)
    tail = _NORMAL.cdf(-math.sqrt(n / (n - 1)) * t)
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return float(low), float(high)


def least_documents(confidence: float) -> int:
    """Smallest number of documents that can decide anything at this confidence.

    If nothing changed, the sign of each document's difference is a coin toss; n equal signs come with probability
    2^(1-n), so below 1 + log2(1 / (1 - confidence)) documents no result is rarer than 1 - confidence (6 at 0.95).
    """
    return math.ceil(1 - math.log2(1 - confidence) - 1e-9)


def wilson_interval(mean: float, num_items: int, confidence: float) -> tuple[float, float]:
    """Score interval of a share of `num_items` independent items (Wilson 1927, JASA 22:158).

    `mean` may be the mean of values within 0 and 1 that aren't all 0 or 1: their variance is at most mean (1 - mean),
    so the interval is then wider than it need be, never narrower. Raises ValueError without items.
    """
    if num_items < 1:
        raise ValueError("no items, no interval")
    z = _NORMAL.inv_cdf((1 + confidence) / 2)
    spread = z * math.sqrt(mean * (1 - mean) / num_items + z * z / (4 * num_items**2))
    centre, scale = mean + z * z / (2 * num_items), 1 + z * z / num_items
    # The bounds enclose the mean; without that, rounding puts the lower one of 0 out of some numbers above it.
    return max(0.0, min(mean, (centre - spread) / scale)), min(1.0, max(mean, (centre + spread) / scale))


def outcome(difference: Estimate, num_effective: float, confidence: float, p_value: float) -> str:
    """improved, worse or undecided, for a difference in bits per byte (adapted - base; less is better).

    Undecided: no interval, 0 within the interval, fewer (effective) documents than could decide anything, or a
    two-sided `p_value` of the sign-flip test above 1 - confidence: the interval alone is somewhat too narrow where a
    few documents are much larger than the others (docs/evaluation.md).
    """
    if difference.low is None or difference.high is None or num_effective < least_documents(confidence):
        return UNDECIDED
    if p_value > 1 - confidence:
        return UNDECIDED
    if difference.high < 0:
        return IMPROVED
    return WORSE if difference.low > 0 else UNDECIDED


def documents_to_decide(
    numerator: np.ndarray, denominator: np.ndarray, confidence: float, power: float = 0.8
) -> int | None:
    """Documents like these at which a difference as large as the observed one would be found.

    n = (z_{(1+confidence)/2} + z_power)^2 s^2 / difference^2, the normal approximation of Miller 2024, "Adding Error
    Bars to Evals" (arXiv 2411.00640), section 5; s^2 is the variance over documents of the linearised ratio
    (numerator - ratio * denominator) / mean(denominator) (Cochran 1977, "Sampling Techniques", section 6.3). Both
    arrays are [documents]. None where the observed difference is 0 or there are fewer than 2 documents: then no
    number follows from the data.
    """
    num_documents = len(denominator)
    if num_documents < 2:
        return None
    observed = float(numerator.sum() / denominator.sum())
    if observed == 0:
        return None
    residuals = (numerator - observed * denominator) / denominator.mean()
    variance = float(np.square(residuals).sum()) / (num_documents - 1)
    z = _NORMAL.inv_cdf((1 + confidence) / 2) + _NORMAL.inv_cdf(power)
    return max(least_documents(confidence), math.ceil(z * z * variance / observed**2))
