"""Adapted against base, and against the control arm, item by item and seed by seed.

The gain is over items and seeds (`evaluation.repeated`); each seed's own comparison stands beside it. A probe of a
recipe that taught neither model anything says nothing about either, so chance and the most frequent answer are given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cpt_dist.config import CptConfig
from cpt_dist.errors import UserError
from cpt_dist.evaluation import paired_tests, statistics
from cpt_dist.evaluation.repeated import RepeatedGain, repeated_gain
from cpt_dist.evaluation.sign_flip import p_different
from cpt_dist.evaluation.statistics import Estimate
from cpt_dist.evaluation.suites.compare import IMPROVED, KEPT, UNDECIDED, WORSE, Judge
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
    clean: RepeatedGain | None = None
    """Without the items found in the training data of the sources; None where none, or nearly all, were found."""


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
    contaminated: list[str] | None
    """Items found in the training data of `data.sources`; None where nothing was searched."""


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
    found = None
    if config.suites.contamination and config.data.sources:
        report("searching the sources for the gold items")
        found = _contaminated(config, task, scores)
    comparisons = [
        compared(one, by_name[ADAPTED], judge, margin, found or []) for one in scores if one.arm.name != ADAPTED
    ]
    return ProbeResult(task, judge, margin, scores, comparisons, _majority(task), found)


def compared(
    other: ArmScores, adapted: ArmScores, judge: Judge, margin: float, contaminated: Sequence[str] = ()
) -> Comparison:
    """The comparison of two arms with the same seeds and items."""
    before, after = other.values(), adapted.values()
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
    keep = [index for index, key in enumerate(adapted.before.keys) if key not in set(contaminated)]
    clean = repeated_gain(gains[:, keep], judge.confidence) if 1 < len(keep) < len(mean) else None
    return Comparison(
        other.arm.name,
        repeated,
        p_value,
        _outcome(repeated, p_value, margin, judge.confidence, len(mean)),
        needed,
        repeated.detectable(judge.confidence),
        seeds,
        clean,
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


def _contaminated(config: CptConfig, task: ProbeTask, scores: Sequence[ArmScores]) -> list[str] | None:
    """Keys of the gold items that share words with the sources' shards; None where there are no complete shards."""
    from cpt_dist.evaluation.suites.run import Answers, Questions, compare_answers
    from cpt_dist.evaluation.suites.tasks import SuiteScores

    suite = task.suite
    base = next(one for one in scores if one.arm.name == BASE)
    values = base.values().mean(axis=0)
    items = suite.items[: len(values)]
    texts = [f"{item.prompt} {item.answer}" for item in items]
    chance = np.full(len(values), base.before.chance)
    asked = SuiteScores(keys=base.before.keys, metric=str(suite.metric), values=values, chance=chance, texts=texts)
    answers = Answers(suites={suite.name: asked})
    searched = compare_answers(config, Questions([suite], {}, []), answers, answers).searched
    if searched is None or not searched.sources:
        return None
    return [key for _, key, _ in searched.evidence]
