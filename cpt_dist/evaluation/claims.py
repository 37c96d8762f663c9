"""Claims about paired measurements, declared beforehand, and the three answers that data gives to each.

A claim says that the adapted model's gain over another one lies above a threshold: 0 or more for a goal (superiority),
minus the tolerated loss for what must be kept (non-inferiority: Piaggio et al. 2012, "Reporting of Noninferiority and
Equivalence Randomized Trials", JAMA 308:24). Each is tested in both directions by sign flips of whole items and
corrected for the number of claims (Holm 1979), so one that fails can't hide behind the others. Nothing here knows what
was measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

from cpt_dist.evaluation.paired_tests import (
    difference_variance,
    is_binary,
    items_to_show,
    minimum_detectable_effect,
    tango_interval,
)
from cpt_dist.evaluation.repeated import repeated_gain
from cpt_dist.evaluation.sign_flip import p_greater
from cpt_dist.evaluation.statistics import (
    Estimate,
    documents_to_decide,
    effective_documents,
    least_documents,
    percentile_interval,
    resampled_ratios,
    source_seed,
)

GOAL, RETENTION, CONTROL = "goal", "retention", "control"
SHOWN, REFUTED, UNDECIDED, NOT_RUN = "shown", "refuted", "undecided", "not run"
HELPED, DID_NOT_HELP = "helped", "did not help"
POWER = 0.8
"""Probability with which a stated number of items, or a stated effect, would decide."""
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Claim:
    """That the gain in `name` lies above `threshold`; without measurements `not_run` says why."""

    name: str
    kind: str
    """goal, retention, or control (better than a model that trained as long on other data)."""
    threshold: float
    """In `unit`; negative for a tolerated loss."""
    unit: str
    gains: np.ndarray | None = None
    """Sum over each item of how much better the adapted model is, [items]."""
    weights: np.ndarray | None = None
    """What the sums are taken over, such as bytes, or 1 for each question, [items]; positive."""
    repeats: np.ndarray | None = None
    """Where `gains` are means over repetitions, such as seeds: the gains of each, [repetitions, items]. The claim then
    has to hold for other repetitions, too."""
    not_run: str | None = None


def without(claim: Claim, leaked: Sequence[int]) -> Claim:
    """The claim, with the threshold as it is, about the items that don't stand at the places `leaked`."""
    if not leaked or claim.gains is None or claim.weights is None:
        return claim
    kept = np.setdiff1d(np.arange(len(claim.gains)), leaked)
    if not len(kept):
        reason = f"all its {len(claim.gains)} items occur in the training data"
        return replace(claim, gains=None, weights=None, not_run=reason)
    repeats = None if claim.repeats is None else claim.repeats[:, kept]
    return replace(claim, gains=claim.gains[kept], weights=claim.weights[kept], repeats=repeats)


@dataclass(frozen=True)
class Answer:
    """What the data says to a claim."""

    claim: Claim
    status: str
    """shown (above the threshold), refuted (below it), undecided or not run."""
    gain: Estimate | None = None
    """Sum of gains over sum of weights, with its interval."""
    p_above: float | None = None
    """Of the claim's opposite, corrected for the number of claims: small if the gain lies above the threshold."""
    p_below: float | None = None
    items: int = 0
    detectable: float | None = None
    """Distance from the threshold that as many items would show with probability `POWER`, in `unit`."""
    items_needed: int | None = None
    """If undecided: items like these that would decide at the observed distance from the threshold, or where that is
    unknown, the fewest that can decide anything."""


@dataclass(frozen=True)
class Verdict:
    """helped, did not help, or undecided; and why."""

    word: str
    reasons: list[str]
    answers: list[Answer]


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of Holm's step-down method, in the order given (Holm 1979, Scandinavian J. Statistics 6)."""
    order = np.argsort(p_values, kind="stable")
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = least
    return adjusted


def answers(claims: Sequence[Claim], confidence: float, num_resamples: int, seed: int) -> list[Answer]:
    """An answer to each claim, in their order. One that was not run still counts in the correction."""
    above, below = [], []
    for claim in claims:
        if claim.gains is None or claim.weights is None:
            above.append(1.0)
            below.append(1.0)
            continue
        distance = claim.gains - claim.threshold * claim.weights
        own_seed = source_seed(seed, f"{claim.kind}/{claim.name}")
        above.append(p_greater(distance, own_seed, num_resamples))
        below.append(p_greater(-distance, own_seed, num_resamples))
    adjusted = zip(claims, holm(above), holm(below), strict=True)
    corrected = 1 - (1 - confidence) / max(1, len(claims))
    return [_answer(*one, confidence, corrected, num_resamples, seed) for one in adjusted]


def _answer(
    claim: Claim,
    p_above: float,
    p_below: float,
    confidence: float,
    corrected: float,
    num_resamples: int,
    seed: int,
) -> Answer:
    if claim.gains is None or claim.weights is None:
        return Answer(claim, NOT_RUN)
    weights = claim.weights.astype(np.float64)
    effective = effective_documents(weights)
    value = float(claim.gains.sum() / weights.sum())
    gain = Estimate(value, None, None)
    if len(weights) > 1:
        replicates = resampled_ratios(claim.gains[None], weights, num_resamples, source_seed(seed, claim.name))[0]
        low, high = percentile_interval(replicates, confidence, effective)
        if claim.repeats is not None:
            over_both = repeated_gain(claim.repeats, confidence)
            low, high = min(low, over_both.low), max(high, over_both.high)
        elif _right_or_wrong(claim):  # where two models agree on a few items a bootstrap has no width
            better, worse = int((claim.gains > 0).sum()), int((claim.gains < 0).sum())
            score_low, score_high = tango_interval(better, worse, len(weights), confidence)
            low, high = min(low, score_low), max(high, score_high)
        gain = Estimate(value, low, high)
    status = UNDECIDED
    if effective >= least_documents(confidence):
        # One direction each, at half of what may go wrong, as the two ends of the interval have it.
        if p_above <= (1 - confidence) / 2 and gain.low is not None and gain.low > claim.threshold:
            status = SHOWN
        elif p_below <= (1 - confidence) / 2 and gain.high is not None and gain.high < claim.threshold:
            status = REFUTED
    needed = None
    if status == UNDECIDED:
        needed = _items_needed(claim.gains - claim.threshold * weights, weights, corrected)
        if _right_or_wrong(claim):
            spread = difference_variance(claim.gains, corrected)
            shown_by = items_to_show(spread, value - claim.threshold, corrected, POWER)
            needed = None if shown_by is None else max(shown_by, needed or 0, len(weights) + 1)
        if claim.repeats is not None and needed == len(weights) + 1:
            needed = None  # there are enough items, and too few repetitions
    detectable = _detectable(claim.gains, weights, confidence)
    if _right_or_wrong(claim):
        spread = difference_variance(claim.gains, confidence)
        detectable = minimum_detectable_effect(spread, len(weights), confidence, POWER)
    return Answer(claim, status, gain, p_above, p_below, len(weights), detectable, needed)


def _right_or_wrong(claim: Claim) -> bool:
    """Whether the gains are those of answers to single questions, -1, 0 or 1 each."""
    assert claim.gains is not None
    assert claim.weights is not None
    return is_binary(claim.gains) and bool((claim.weights == 1).all())


def _items_needed(distance: np.ndarray, weights: np.ndarray, corrected: float) -> int | None:
    """Items that would decide, more than there are, at the confidence of the first of Holm's steps.

    None where there are enough for a decision and none of them differs from the threshold.
    """
    items, effective = len(weights), effective_documents(weights)
    least = math.ceil(least_documents(corrected) * items / effective - 1e-9)
    needed = documents_to_decide(distance, weights, corrected, POWER)
    if needed is None:
        return least if items < least else None
    return max(needed, least, items + 1)


def _detectable(gains: np.ndarray, weights: np.ndarray, confidence: float) -> float | None:
    """Minimum detectable effect, (z_{(1+confidence)/2} + z_power) s / sqrt(n), of the linearised ratio."""
    if len(weights) < 2:
        return None
    residuals = (gains - gains.sum() / weights.sum() * weights) / weights.mean()
    spread = math.sqrt(float(np.square(residuals).sum()) / (len(weights) - 1))
    z = _NORMAL.inv_cdf((1 + confidence) / 2) + _NORMAL.inv_cdf(POWER)
    return z * spread / math.sqrt(len(weights))


def decide(found: Sequence[Answer]) -> Verdict:
    """helped if every claim is shown; did not help if one is refuted; else undecided.

    Without a single goal there is nothing that training could have helped with: undecided.
    """
    reasons = [_reason(answer) for answer in found if answer.status != SHOWN]
    if any(answer.status == REFUTED for answer in found):
        word = DID_NOT_HELP
    elif found and all(answer.status == SHOWN for answer in found) and any(a.claim.kind == GOAL for a in found):
        word = HELPED
    else:
        word = UNDECIDED
    if not any(answer.claim.kind == GOAL for answer in found):
        reasons.append("no goal was declared; name a domain source")
    return Verdict(word, reasons, list(found))


def _reason(answer: Answer) -> str:
    claim = answer.claim
    what = {GOAL: "gain in", RETENTION: "retention of", CONTROL: "gain over the control arm in"}[claim.kind]
    if answer.status == NOT_RUN:
        return f"{what} {claim.name}: not run, since {claim.not_run}"
    assert answer.gain is not None
    measured = f"{answer.gain.value:+.4f} {claim.unit} against a threshold of {claim.threshold:+.4f}"
    if answer.status == REFUTED:
        return f"{what} {claim.name} is refuted: {measured}"
    if answer.items_needed is None:
        return f"{what} {claim.name} is undecided: {measured}; no number of items follows from the data"
    return (
        f"{what} {claim.name} is undecided: {measured}; needs n = {answer.items_needed:,} instead of {answer.items:,}"
    )
