"""Loss by position: the nll of long documents in buckets of the number of tokens before.

Each document goes through the model once, as a whole, with the model's own attention. A difference between two
buckets is only taken on the documents that reach the end of both, because long documents differ from short ones in
more than their length. Where the loss stops falling is the length that the model makes use of.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from cpt_dist.evaluation import statistics
from cpt_dist.evaluation.bits_per_byte import Score, SumOverRanks, filler
from cpt_dist.evaluation.sign_flip import p_different
from cpt_dist.evaluation.statistics import Estimate

FIRST_BORDER = 64


@dataclass(frozen=True)
class PositionScores:
    """What a model's predictions of each document cost, by bucket; arrays [documents, buckets]."""

    borders: tuple[int, ...]
    """[buckets + 1], from 0: bucket b has the tokens with borders[b] to borders[b + 1] - 1 text tokens before."""
    nll: np.ndarray
    """Nats, float64."""
    tokens: np.ndarray
    """Predicted tokens, int64."""

    def whole(self, bucket: int) -> np.ndarray:
        """Bool [documents]: those that fill the bucket."""
        return self.tokens[:, bucket] == self.borders[bucket + 1] - self.borders[bucket]


@dataclass(frozen=True)
class Bucket:
    """Nats per token in one bucket, for one model or for the change between two."""

    start: int
    stop: int
    documents: int
    tokens: int
    loss: Estimate
    step: Estimate | None = None
    """Loss here minus loss in the bucket before, on documents that fill both; None in the first and without any."""
    step_documents: int = 0
    step_outcome: str | None = None
    """improved: the loss falls on from the bucket before; worse: it rises; undecided."""


@dataclass(frozen=True)
class Curve:
    """Loss by position of one model."""

    buckets: tuple[Bucket, ...]
    falls_until: int | None
    """End of the last bucket, before any in which it rises, where the loss is surely below the bucket before."""
    rises_from: int | None
    """Start of the first bucket where it is surely above the bucket before."""


@dataclass(frozen=True)
class Change:
    """Adapted minus base in one bucket, in nats per token, on the same documents."""

    start: int
    stop: int
    documents: int
    difference: Estimate
    outcome: str


def bucket_borders(length: int, wanted: Sequence[int] = ()) -> tuple[int, ...]:
    """0, the `wanted` borders (default: powers of two from 64) below `length`, and `length`."""
    inner = wanted or [FIRST_BORDER << shift for shift in range(max(1, length.bit_length()))]
    return (0, *(border for border in inner if border < length), length)


def score_positions(
    encoded: Sequence[np.ndarray],
    score: Score,
    borders: Sequence[int],
    rank: int = 0,
    world_size: int = 1,
    sum_over_ranks: SumOverRanks = lambda values: values,
) -> PositionScores:
    """Score documents, each in one forward, up to the last border.

    `encoded` are their tokens with the context token in front, int64 [1 + text tokens]. Document i is scored by rank
    i % world_size, in the same number of forwards on every rank; all give the same scores.
    """
    counts = np.zeros((len(encoded), len(borders) - 1), dtype=np.int64)
    sums = np.zeros(counts.shape, dtype=np.float64)
    for document, tokens in enumerate(encoded):
        size = min(len(tokens) - 1, borders[-1])
        counts[document] = [max(0, min(stop, size) - start) for start, stop in itertools.pairwise(borders)]
    there = np.flatnonzero(counts.sum(axis=1))
    for first in range(0, len(there), world_size):
        if first + rank >= len(there):
            score(*filler(int(encoded[0][0])))
            continue
        document = there[first + rank]
        part = torch.from_numpy(np.asarray(encoded[document][: borders[-1] + 1], dtype=np.int64))
        size = len(part) - 1
        nll = score(part[:-1], part[1:], torch.arange(size), torch.tensor([0, size], dtype=torch.int32))
        values = nll.detach().to("cpu", torch.float64).numpy()
        sums[document] = [values[start:stop].sum() for start, stop in itertools.pairwise(borders)]
    return PositionScores(tuple(borders), sum_over_ranks(sums), counts)


def _estimate(
    nll: np.ndarray, tokens: np.ndarray, num_resamples: int, confidence: float, seed: int, name: str
) -> Estimate:
    """Ratio of sums over documents with its interval."""
    weights = tokens.astype(np.float64)
    value = float(nll.sum() / weights.sum())
    if len(nll) < 2:
        return Estimate(value, None, None)
    effective = statistics.effective_documents(weights)
    replicates = statistics.resampled_ratios(nll[None], weights, num_resamples, statistics.source_seed(seed, name))
    return Estimate(value, *statistics.percentile_interval(replicates[0], confidence, effective))


def _decided(
    nll: np.ndarray, tokens: np.ndarray, num_resamples: int, confidence: float, seed: int, name: str
) -> tuple[Estimate, str]:
    """A difference of nll as `_estimate` gives it, and its outcome."""
    estimate = _estimate(nll, tokens, num_resamples, confidence, seed, name)
    p_value = p_different(nll, statistics.source_seed(seed, name), num_resamples)
    effective = statistics.effective_documents(tokens)
    return estimate, statistics.outcome(estimate, effective, confidence, p_value)


def curve(scores: PositionScores, num_resamples: int, confidence: float, seed: int) -> Curve:
    """Loss by position with intervals from resampling documents, and where it stops falling."""
    buckets: list[Bucket] = []
    for index, (start, stop) in enumerate(itertools.pairwise(scores.borders)):
        there = scores.tokens[:, index] > 0
        if not there.any():
            break
        nll, tokens = scores.nll[there, index], scores.tokens[there, index]
        loss = _estimate(nll, tokens, num_resamples, confidence, seed, f"position {start}")
        bucket = Bucket(start, stop, int(there.sum()), int(tokens.sum()), loss)
        both = scores.whole(index) & scores.whole(index - 1) if index else np.zeros(len(there), dtype=bool)
        if both.any():
            means = scores.nll[both, index - 1 : index + 1] / scores.tokens[both, index - 1 : index + 1]
            ones = np.ones(int(both.sum()))
            step, decided = _decided(means[:, 1] - means[:, 0], ones, num_resamples, confidence, seed, f"step {start}")
            bucket = replace(bucket, step=step, step_documents=len(ones), step_outcome=decided)
        buckets.append(bucket)
    falls_until, rises_from = None, None
    for bucket in buckets:
        if bucket.step_outcome == statistics.WORSE:
            rises_from = bucket.start
            break
        if bucket.step_outcome == statistics.IMPROVED:
            falls_until = bucket.stop
    return Curve(tuple(buckets), falls_until, rises_from)


def changes(
    base: PositionScores, adapted: PositionScores, num_resamples: int, confidence: float, seed: int
) -> tuple[Change, ...]:
    """Adapted minus base in each bucket. Both scores are of the same documents in the same tokens."""
    found = []
    for index, (start, stop) in enumerate(itertools.pairwise(base.borders)):
        there = base.tokens[:, index] > 0
        if not there.any():
            break
        difference, decided = _decided(
            (adapted.nll - base.nll)[there, index],
            base.tokens[there, index],
            num_resamples,
            confidence,
            seed,
            f"position {start}",
        )
        found.append(Change(start, stop, int(there.sum()), difference, decided))
    return tuple(found)
