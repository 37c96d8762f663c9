"""Which of two kinds of text a document looks like: the domain, or the replay text that it is mixed with.

Features are hashed words and pairs of words, whatever the length of the document. Two models share them: a logistic
regression, and the log ratio of probabilities of DSIR (Xie et al. 2023, arXiv 2302.03169). Either's raw number becomes
a probability by Platt's scaling on documents that the model wasn't fitted on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cpt_dist.corpus.steps.text_view import TextView, ngrams

_FINISHER = np.uint64(0xD6E8FEB86659FD93)
_LEARNING_RATE = 0.5
_DECAY = 1e-6
_NEWTON_STEPS = 30
HOLD_BACK = 5
"""One document in so many is kept for scaling and for the area under the curve."""


def features(view: TextView, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """([features] sorted buckets, [features] how often each occurs) of the words and pairs of words of a text."""
    words = view.term_hashes
    pairs = ngrams(words, words, 2) if len(words) > 1 else words[:0]
    both = np.concatenate([words, pairs])
    buckets = (both ^ (both >> np.uint64(31))) * _FINISHER >> np.uint64(64 - bits)
    return np.unique(buckets.astype(np.int64), return_counts=True)


def _values(counts: np.ndarray) -> np.ndarray:
    """log(1 + count), scaled to the length 1, so that no document counts more for being long."""
    logs = np.log1p(counts)
    return logs / max(float(np.sqrt((logs * logs).sum())), 1e-12)


def _dot(one: np.ndarray, other: np.ndarray) -> float:
    # Not `@`: a BLAS sums in another order with another number of threads.
    return float((one * other).sum(dtype=np.float64))


@dataclass(frozen=True)
class RelevanceModel:
    """A linear score over features, and the scaling that makes it a probability."""

    weights: np.ndarray
    """[2 ** bits] f32."""
    bias: float
    slope: float
    offset: float
    method: str

    def raw(self, view: TextView) -> float:
        """classifier: log odds; importance: mean log ratio of probabilities over the features of the text."""
        return self._raw(*features(view, int(np.log2(len(self.weights)))))

    def _raw(self, buckets: np.ndarray, counts: np.ndarray) -> float:
        if not len(buckets):
            return 0.0
        if self.method == "classifier":
            return _dot(self.weights[buckets], _values(counts)) + self.bias
        return _dot(self.weights[buckets], counts) / float(counts.sum())

    def probability(self, raw: float) -> float:
        """Probability that a document with this raw number is of the domain."""
        return float(1 / (1 + np.exp(-np.clip(self.slope * raw + self.offset, -30, 30))))


def area_under_curve(domain: np.ndarray, replay: np.ndarray) -> float:
    """Probability that a domain document has a higher number than one of replay; ties count half.

    0.5 if there are none of either.
    """
    if not len(domain) or not len(replay):
        return 0.5
    both = np.concatenate([domain, replay])
    _, places, sizes = np.unique(both, return_inverse=True, return_counts=True)
    ranks = np.cumsum(sizes) - (sizes - 1) / 2
    total = ranks[places[: len(domain)]].sum() - len(domain) * (len(domain) + 1) / 2
    return float(total / (len(domain) * len(replay)))


Feature = tuple[np.ndarray, np.ndarray]


def _classifier(
    domain: Sequence[Feature], replay: Sequence[Feature], bits: int, epochs: int
) -> tuple[np.ndarray, float]:
    """Logistic regression by AdaGrad; both classes weigh the same, whatever their sizes."""
    weights, squares = np.zeros(1 << bits), np.full(1 << bits, 1e-8)
    bias, bias_square = 0.0, 1e-8
    items = [
        (buckets, _values(counts), label) for rows, label in ((domain, 1.0), (replay, 0.0)) for buckets, counts in rows
    ]
    importance = {1.0: len(items) / (2 * len(domain)), 0.0: len(items) / (2 * len(replay))}
    rng = np.random.default_rng(0)
    for _ in range(epochs):
        for index in rng.permutation(len(items)):
            buckets, values, label = items[index]
            odds = np.clip(_dot(weights[buckets], values) + bias, -30, 30)
            error = (1 / (1 + np.exp(-odds)) - label) * importance[label]
            slope = error * values + _DECAY * weights[buckets]
            squares[buckets] += slope * slope
            weights[buckets] -= _LEARNING_RATE * slope / np.sqrt(squares[buckets])
            bias_square += error * error
            bias -= _LEARNING_RATE * error / np.sqrt(bias_square)
    return weights, bias


def _importance(domain: Sequence[Feature], replay: Sequence[Feature], bits: int) -> np.ndarray:
    """log p_domain - log p_replay of each feature, with one added to every count."""

    def log_probability(rows: Sequence[Feature]) -> np.ndarray:
        totals = np.ones(1 << bits)
        for buckets, counts in rows:
            totals[buckets] += counts
        return np.log(totals / totals.sum())

    return log_probability(domain) - log_probability(replay)


def _platt(raw: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """(slope, offset) that make `raw` the probability of the label 1 (Platt 1999), classes weighed alike."""
    ones = max(float(labels.sum()), 1.0)
    zeros = max(float(len(labels) - labels.sum()), 1.0)
    weight = np.where(labels == 1, 0.5 / ones, 0.5 / zeros)
    # Platt's targets are off 0 and 1, so a clean split doesn't send the slope to infinity.
    target = np.where(labels == 1, (ones + 1) / (ones + 2), 1 / (zeros + 2))
    columns = np.stack([raw, np.ones_like(raw)], axis=1)
    solution = np.zeros(2)
    for _ in range(_NEWTON_STEPS):
        probability = 1 / (1 + np.exp(-np.clip(columns @ solution, -30, 30)))
        slope = columns.T @ (weight * (probability - target))
        curvature = (columns.T * (weight * probability * (1 - probability))) @ columns + 1e-9 * np.eye(2)
        step = np.linalg.solve(curvature, slope)
        solution -= np.clip(step, -10, 10)
        if np.abs(step).max() < 1e-9:
            break
    return float(solution[0]), float(solution[1])


def fit(
    domain: Sequence[str], replay: Sequence[str], method: str, bits: int, epochs: int
) -> tuple[RelevanceModel, float]:
    """(model, area under the curve on every fifth document, which it wasn't fitted on).

    Raises ValueError with fewer than HOLD_BACK documents of either kind.
    """
    if min(len(domain), len(replay)) < HOLD_BACK:
        raise ValueError(f"{len(domain)} domain and {len(replay)} replay documents; {HOLD_BACK} of each are needed")
    rows = [[features(TextView(text), bits) for text in texts] for texts in (domain, replay)]
    held = [kind[::HOLD_BACK] for kind in rows]
    fitted = [[row for place, row in enumerate(kind) if place % HOLD_BACK] for kind in rows]
    bias = 0.0
    if method == "classifier":
        weights, bias = _classifier(fitted[0], fitted[1], bits, epochs)
    else:
        weights = _importance(fitted[0], fitted[1], bits)
    model = RelevanceModel(weights.astype(np.float32), bias, 1.0, 0.0, method)
    raw = [np.array([model._raw(*row) for row in kind]) for kind in held]
    labels = np.concatenate([np.ones(len(raw[0])), np.zeros(len(raw[1]))])
    slope, offset = _platt(np.concatenate(raw), labels)
    return RelevanceModel(model.weights, bias, slope, offset, method), area_under_curve(raw[0], raw[1])
