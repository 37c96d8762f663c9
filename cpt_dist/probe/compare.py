"""Adapted against base, and against the control arm, item by item and seed by seed.

The gain is over items and seeds (`evaluation.repeated`); each seed's own comparison stands beside it. Items that occur
in the training data of the sources decide nothing; the gain with them stands beside the other. A probe of a recipe that
taught neither model anything says nothing about either, so chance and the most frequent answer are given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cpt_dist.config import CptConfig
from cpt_dist.errors import UserError
from cpt_dist.evaluation import paired_tests, statistics
from cpt_dist.evaluation.repeated import RepeatedGain, repeated_gain
from cpt_dist.evaluation.sign_flip import p_different
from cpt_dist.evaluation.statistics import Estimate
from cpt_dist.evaluation.suites.compare import IMPROVED, KEPT, UNDECIDED, WORSE, Judge
from cpt_dist.evaluation.suites.run import Searched, search_items
from cpt_dist.probe.arms import ADAPTED, BASE, ArmScores, arms_of, made
from cpt_dist.probe.spec import ProbeTask, read_task


@dataclass(frozen=True)
class SeedComparison:
    """Adapted and another model after fine-tuning with one seed."""

    seed: int
    other: float
    adapted: float
    gain: Estimate
    only_other: int
    """Items that the other model alone has right."""
    only_adapted: int
    p_value: float
    """McNemar's exact test."""


@dataclass(frozen=True)
class Comparison:
    """Adapted against another arm."""

    other: str
    repeated: RepeatedGain
    p_value: float
    """Two-sided sign-flip test of whole items, over their means of all seeds."""
    outcome: str
    items_needed: int | None
    """Items that would decide, were the true gain the observed one, with the seeds as they are."""
    detectable: float
    seeds: list[SeedComparison]
    with_found: RepeatedGain | None = None
    """With the items found in the training data of the sources, on which nothing else here rests; None where none was
    found."""


@dataclass(frozen=True)
class ProbeResult:
    """Everything that a probe found."""

    task: ProbeTask
    judge: Judge
    margin: float
    arms: list[ArmScores]
    comparisons: list[Comparison]
    majority: float
    """Share of the gold items whose answer is the most frequent one of the training examples."""
    searched: Searched | None
    """What was searched for the items; None where that is off or `data.sources` has no complete shards."""

    @property
    def found(self) -> list[int]:
        """Places of the items that occur in the training data."""
        return self.searched.leaked[self.task.suite.name] if self.searched else []


def probe(config: CptConfig, report: Callable[[str], None] = lambda line: None) -> ProbeResult:
    """Make what is missing of the arms, and compare them. `report` hears each arm's results.

    Raises UserError for mistakes in data and gold set, results of another spec or model, and models whose items differ.
    """
    task = read_task(config)
    arms = arms_of(config)
    scores = [made(arm, task, config, report) for arm in arms]
    for one in scores[1:]:
        if one.before.keys != scores[0].before.keys:
            raise UserError(f"{one.arm.name} and {scores[0].arm.name} were given different items; remove their results")
    judge = Judge(config.evaluation.confidence, config.evaluation.bootstrap, config.seed, config.suites.margin)
    margin = judge.margin_of(task.suite, len(scores[0].before.keys))
    by_name = {one.arm.name: one for one in scores}
    searched = None
    if config.suites.contamination and config.data.sources:
        report("searching the sources for the gold items")
        searched = _searched(config, task, by_name[BASE], report)
    result = ProbeResult(task, judge, margin, scores, [], _majority(task), searched)
    others = [one for one in scores if one.arm.name != ADAPTED]
    return replace(result, comparisons=[compared(one, by_name[ADAPTED], judge, margin, result.found) for one in others])


def compared(
    other: ArmScores, adapted: ArmScores, judge: Judge, margin: float, found: Sequence[int] = ()
) -> Comparison:
    """The comparison of two arms with the same seeds and items, on the items that don't stand at the places `found`.

    With fewer than two of these it is over all items, and undecided.
    """
    before, after = other.values(), adapted.values()
    over_all = repeated_gain(after - before, judge.confidence)
    kept = np.setdiff1d(np.arange(before.shape[1]), found)
    if len(kept) > 1:
        before, after = before[:, kept], after[:, kept]
    gains = after - before
    mean = gains.mean(axis=0)
    repeated = repeated_gain(gains, judge.confidence)
    p_value = p_different(mean, statistics.source_seed(judge.seed, other.arm.name), judge.num_resamples)
    seeds = []
    for seed, first, second in zip(adapted.seeds, before, after, strict=True):
        only_other, only_adapted = int((first > second).sum()), int((second > first).sum())
        interval = paired_tests.tango_interval(only_adapted, only_other, len(first), judge.confidence)
        gain = Estimate(float((second - first).mean()), *interval)
        p_seed = paired_tests.mcnemar_exact(only_other, only_adapted)
        seeds.append(
            SeedComparison(seed, float(first.mean()), float(second.mean()), gain, only_other, only_adapted, p_seed)
        )
    distance = repeated.value + margin if repeated.value > -margin else repeated.value
    variance = repeated.item_variance * len(mean)
    needed = paired_tests.items_to_show(variance, distance, judge.confidence) if variance else None
    return Comparison(
        other.arm.name,
        repeated,
        p_value,
        _outcome(repeated, p_value, margin, judge.confidence, len(kept)),
        needed,
        repeated.detectable(judge.confidence),
        seeds,
        over_all if len(found) else None,
    )


def _outcome(gain: RepeatedGain, p_value: float, margin: float, confidence: float, num_items: int) -> str:
    """improved or worse where interval and test agree, kept where no loss beyond the margin is left, else undecided."""
    if num_items < statistics.least_documents(confidence):
        return UNDECIDED
    if p_value <= 1 - confidence and gain.low > 0:
        return IMPROVED
    if gain.low > -margin:
        return KEPT
    return WORSE if p_value <= 1 - confidence and gain.high < 0 else UNDECIDED


def _majority(task: ProbeTask) -> float:
    most = Counter(one.answer for one in task.examples).most_common(1)[0][0]
    return sum(item.answer == most for item in task.suite.items) / len(task.suite.items)


def _searched(config: CptConfig, task: ProbeTask, base: ArmScores, report: Callable[[str], None]) -> Searched | None:
    """The gold items, looked up in the sources' shards; None where there are no complete shards."""
    from cpt_dist.evaluation.suites.tasks import SuiteScores

    suite, values = task.suite, base.values().mean(axis=0)
    texts = [f"{item.prompt} {item.answer}" for item in suite.items[: len(values)]]
    chance = np.full(len(values), base.before.chance)
    asked = SuiteScores(keys=base.before.keys, metric=str(suite.metric), values=values, chance=chance, texts=texts)
    searched = search_items(config, {suite.name: asked}, report)
    return searched if searched.sources else None
