"""Two models on the same items: what was kept, lost or won on each suite.

Everything is paired and signed: positive is better, whatever the metric's direction. A suite's outcome comes from a
test that is corrected for the number of suites, and from a margin that was declared before; the outcome of several
suites together is that of the worst of them, never that of their mean. Nothing here knows a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cpt_dist.evaluation import paired_tests, statistics
from cpt_dist.evaluation.claims import holm
from cpt_dist.evaluation.sign_flip import p_different
from cpt_dist.evaluation.statistics import Estimate
from cpt_dist.evaluation.suites.suite_file import Suite
from cpt_dist.evaluation.suites.tasks import SuiteScores

IMPROVED, KEPT, UNDECIDED, WORSE, NOT_RUN = "improved", "kept", "undecided", "worse", "not run"
_SEVERITY = (WORSE, UNDECIDED, KEPT, IMPROVED)
MANY_ITEMS = 1000


@dataclass(frozen=True)
class Judge:
    """What a comparison depends on beside the scores."""

    confidence: float
    num_resamples: int
    seed: int
    margin: float | None = None

    def margin_of(self, suite: Suite, num_items: int) -> float:
        """Loss that still counts as kept, in the metric's units."""
        for declared in (suite.margin, self.margin):
            if declared is not None:
                return declared
        return 0.02 if num_items >= MANY_ITEMS else 0.03


@dataclass(frozen=True)
class Comparison:
    """Base and adapted model on some items of a suite; gains are positive where the adapted model is better."""

    items: int
    base: Estimate
    adapted: Estimate
    gain: Estimate
    chance: float
    retention: Estimate | None
    """(adapted - chance) / (base - chance), 1 is all kept; None where the base isn't above chance for certain."""
    only_base: int | None
    """Items that the base alone has right; None for scores that aren't right or wrong."""
    only_adapted: int | None
    p_value: float
    margin: float
    detectable: float | None
    """Smallest true change that so many items show with probability 0.8."""
    items_to_decide: int | None
    """Items like these that would decide, were the true change the observed one; None without such a number."""
    p_adjusted: float = 1.0
    outcome: str = UNDECIDED


@dataclass(frozen=True)
class SuiteResult:
    """A suite's comparison, or why there is none."""

    suite: str
    capability: str
    metric: str = ""
    not_run: str | None = None
    comparison: Comparison | None = None
    answer_bits: tuple[float, float] | None = None
    """Mean bits per byte of the right answers, base and adapted; lower is better."""
    clean: Comparison | None = None
    """The same without the items found in the training data; None where all or none were found."""
    contaminated: int | None = None
    """Items found in the training data; None where nothing was searched."""
    unchecked: int = 0
    """Items too short to be searched for."""

    @property
    def outcome(self) -> str:
        return self.comparison.outcome if self.comparison else NOT_RUN


def compare_scores(suite: Suite, base: SuiteScores, adapted: SuiteScores, judge: Judge) -> SuiteResult:
    """The result of a suite before it is corrected for the others (`with_outcomes`)."""
    reason = base.not_run or adapted.not_run
    if reason is None and base.keys != adapted.keys:
        reason = "the two models were given different items"
    if reason is not None:
        return SuiteResult(suite.name, suite.capability, suite.metric or "", not_run=reason)
    comparison = compare_items(suite, base, adapted, judge, np.arange(len(base.values)))
    bits = None
    if base.answer_bits is not None and adapted.answer_bits is not None:
        bits = float(base.answer_bits.mean()), float(adapted.answer_bits.mean())
    return SuiteResult(suite.name, suite.capability, base.metric, comparison=comparison, answer_bits=bits)


def compare_items(
    suite: Suite, base: SuiteScores, adapted: SuiteScores, judge: Judge, chosen: np.ndarray
) -> Comparison:
    """The comparison over the items with the indices `chosen` (at least one)."""
    before, after, chance = base.values[chosen], adapted.values[chosen], base.chance[chosen]
    sign = 1.0 if base.higher_is_better else -1.0
    gains = sign * (after - before)
    n = len(chosen)
    seed = statistics.source_seed(judge.seed, suite.name)
    replicates = statistics.resampled_ratios(
        np.stack([before, after, gains, after - chance, before - chance]), np.ones(n), judge.num_resamples, seed
    )
    right_or_wrong = bool(np.isin(before, (0.0, 1.0)).all() and np.isin(after, (0.0, 1.0)).all())
    only_base = only_adapted = None
    if right_or_wrong:
        only_base, only_adapted = int((before > after).sum()), int((after > before).sum())
        estimates = [
            Estimate(float(x.mean()), *statistics.wilson_interval(float(x.mean()), n, judge.confidence))
            for x in (before, after)
        ]
        more, less = (only_adapted, only_base) if sign > 0 else (only_base, only_adapted)
        interval = paired_tests.tango_interval(more, less, n, judge.confidence)
        gain = Estimate(float(gains.mean()), *interval)
        p_value = paired_tests.mcnemar_exact(only_base, only_adapted)
    else:
        estimates = [_bootstrapped(x, row, judge) for x, row in ((before, replicates[0]), (after, replicates[1]))]
        gain = _bootstrapped(gains, replicates[2], judge)
        enough = n >= statistics.least_documents(judge.confidence)
        p_value = p_different(gains, seed, judge.num_resamples) if enough else 1.0
    margin = judge.margin_of(suite, n)
    variance = paired_tests.difference_variance(gains, judge.confidence)
    return Comparison(
        items=n,
        base=estimates[0],
        adapted=estimates[1],
        gain=gain,
        chance=float(chance.mean()),
        retention=_retention(estimates[0], gain, float(chance.mean()), replicates, judge, n) if sign > 0 else None,
        only_base=only_base,
        only_adapted=only_adapted,
        p_value=p_value,
        margin=margin,
        detectable=paired_tests.minimum_detectable_effect(variance, n, judge.confidence) if variance else None,
        items_to_decide=_to_decide(gain.value, margin, variance, judge.confidence) if variance else None,
    )


def _bootstrapped(values: np.ndarray, replicates: np.ndarray, judge: Judge) -> Estimate:
    if len(values) < 2:
        return Estimate(float(values.mean()), None, None)
    return Estimate(
        float(values.mean()), *statistics.percentile_interval(replicates, judge.confidence, float(len(values)))
    )


def _retention(
    base: Estimate, gain: Estimate, chance: float, replicates: np.ndarray, judge: Judge, n: int
) -> Estimate | None:
    """Share of what the base knows beyond chance that is left, with the wider of two intervals.

    The bootstrap of the ratio has no width where the models never disagree, and the gain's interval over the base's
    measured distance from chance takes that distance as exact, so both are asked.
    """
    if base.low is None or base.low <= chance or gain.low is None or gain.high is None:
        return None
    above = base.value - chance
    usable = replicates[4] > 0
    low, high = statistics.percentile_interval(
        replicates[3][usable] / replicates[4][usable], judge.confidence, float(n)
    )
    return Estimate(1 + gain.value / above, min(low, 1 + gain.low / above), max(high, 1 + gain.high / above))


def _to_decide(gain: float, margin: float, variance: float, confidence: float) -> int | None:
    """Items that would show `gain`: as kept where it lies above the margin, as a loss below it."""
    distance = gain + margin if gain > -margin else gain
    return paired_tests.items_to_show(variance, distance, confidence)


def outcome_of(comparison: Comparison, p_adjusted: float, confidence: float) -> str:
    """improved or worse by the corrected test, kept by the margin, else undecided.

    A loss that is certain but certainly within the margin is kept: that is what declaring a margin means.
    """
    alpha = 1 - confidence
    gain = comparison.gain
    enough = comparison.only_base is not None or comparison.items >= statistics.least_documents(confidence)
    if gain.low is None or not enough:
        return UNDECIDED
    if p_adjusted <= alpha and gain.value > 0:
        return IMPROVED
    if gain.low > -comparison.margin:
        return KEPT
    return WORSE if p_adjusted <= alpha and gain.value < 0 else UNDECIDED


def with_outcomes(results: Sequence[SuiteResult], confidence: float) -> list[SuiteResult]:
    """The results with p-values corrected over all suites that were run (Holm), and their outcomes."""
    decided = list(results)
    for name in ("comparison", "clean"):
        run = [index for index, result in enumerate(decided) if getattr(result, name) is not None]
        adjusted = holm([getattr(decided[index], name).p_value for index in run])
        for index, p_adjusted in zip(run, adjusted, strict=True):
            found = getattr(decided[index], name)
            judged = replace(found, p_adjusted=p_adjusted, outcome=outcome_of(found, p_adjusted, confidence))
            decided[index] = replace(decided[index], **{name: judged})
    return decided


@dataclass(frozen=True)
class CapabilityResult:
    """All suites of a capability: the mean gain beside the outcome of the worst suite."""

    capability: str
    outcome: str
    mean_gain: float | None
    """Mean over suites, each with the same weight; None where their metrics have different units or none was run."""
    suites: dict[str, list[str]]
    """Outcome -> suites."""


def by_capability(results: Sequence[SuiteResult]) -> list[CapabilityResult]:
    """One entry a capability, in the order of first appearance; suites that weren't run are named in it."""
    found = []
    for capability in dict.fromkeys(result.capability for result in results):
        group = [result for result in results if result.capability == capability]
        suites: dict[str, list[str]] = {}
        for result in group:
            suites.setdefault(result.outcome, []).append(result.suite)
        run = [result.comparison for result in group if result.comparison]
        worst = next((outcome for outcome in _SEVERITY if outcome in suites), NOT_RUN)
        comparable = run and all(one.only_base is not None for one in run)
        mean = float(np.mean([one.gain.value for one in run])) if comparable else None
        found.append(CapabilityResult(capability, worst, mean, suites))
    return found
