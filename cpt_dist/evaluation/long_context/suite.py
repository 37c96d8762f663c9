"""The synthetic suite: items of every task and length, and what a model's answers to them are worth.

A score is set in relation to the model's own at the length that it was trained on, because a small model that never
solves a task doesn't lose it with length either. Tasks are never averaged into one number: a mean may hide one that
fails.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cpt_dist.evaluation import statistics
from cpt_dist.evaluation.documents import DocumentEncoder
from cpt_dist.evaluation.long_context.answering import Answerer, chosen_score, written_score
from cpt_dist.evaluation.long_context.haystack import Haystack
from cpt_dist.evaluation.long_context.items import Item, TooShortError, make_item
from cpt_dist.evaluation.long_context.tasks import CHANCE
from cpt_dist.evaluation.sign_flip import p_different
from cpt_dist.evaluation.statistics import Estimate

WRITTEN, CHOSEN = "written", "chosen"
CHANCE_OF = {WRITTEN: 0.0, CHOSEN: CHANCE}
"""Ways of scoring, and what a model that knows nothing gets: written (RULER's string match) and chosen (likeliest of
the candidates)."""
EFFECTIVE_SHARE = 0.85
"""A task counts as kept at a length where the score above chance is at least this share of that at the native length.
RULER's bar is about the same share of a reference model's score at 4k (arXiv 2404.06654, section 4)."""


@dataclass(frozen=True)
class SuiteSettings:
    """What the items depend on besides the tokenizer."""

    tasks: tuple[str, ...]
    lengths: tuple[int, ...]
    native_length: int
    num_items: int
    depths: tuple[float, ...]
    seed: int


@dataclass(frozen=True)
class ItemScores:
    """What one model made of a task at a length: arrays [items], None where that way of scoring wasn't run."""

    task: str
    length: int
    ids: tuple[str, ...]
    depths: tuple[float | None, ...]
    prompt_tokens: int
    """Of all items."""
    scores: dict[str, np.ndarray]
    """Way of scoring -> values between 0 and 1."""


@dataclass(frozen=True)
class TaskResult:
    """One task, length and way of scoring, before and after; without items `not_run` says why."""

    task: str
    length: int
    way: str
    chance: float
    items: int = 0
    not_run: str | None = None
    base: Estimate | None = None
    adapted: Estimate | None = None
    base_kept: float | None = None
    """Score above chance as a share of the model's own at its native length; None where that isn't above chance."""
    adapted_kept: float | None = None
    difference: Estimate | None = None
    """adapted - base: positive is better."""
    outcome: str | None = None
    by_depth: tuple[tuple[float, float, float], ...] = ()
    """(depth asked for, score of base, score of adapted)."""


def make_items(
    settings: SuiteSettings, encoder: DocumentEncoder, haystack: Haystack
) -> tuple[list[list[Item]], dict[tuple[str, int], str]]:
    """The items of each task and length, and why there are none for the others."""
    groups: list[list[Item]] = []
    reasons: dict[tuple[str, int], str] = {}
    for task in settings.tasks:
        for length in settings.lengths:
            try:
                group = [
                    make_item(task, length, index, encoder, haystack, settings.seed, settings.depths)
                    for index in range(settings.num_items)
                ]
            except TooShortError as error:
                reasons[task, length] = str(error)
                continue
            groups.append(group)
    return groups, reasons


def score_items(
    groups: Sequence[Sequence[Item]],
    answer: Answerer,
    depths: Sequence[float],
    report: Callable[[str], None] = lambda line: None,
) -> list[ItemScores]:
    """Let a model answer all items."""
    found = []
    for group in groups:
        report(f"{group[0].task} at {group[0].length:,} tokens ({len(group)} items)")
        answers = [answer(item) for item in group]
        scores = {CHOSEN: np.array([chosen_score(one) for one in answers])}
        texts = [one.text for one in answers]
        if None not in texts:
            pairs = zip(group, texts, strict=True)
            scores[WRITTEN] = np.array([written_score(item, text) for item, text in pairs if text is not None])
        asked = tuple(depths[item.index % len(depths)] if item.depth is not None else None for item in group)
        found.append(
            ItemScores(
                group[0].task,
                group[0].length,
                tuple(item.id for item in group),
                asked,
                sum(item.num_tokens for item in group),
                scores,
            )
        )
    return found


def _share(values: np.ndarray, confidence: float) -> Estimate:
    mean = float(values.mean())
    return Estimate(mean, *statistics.wilson_interval(mean, len(values), confidence))


def _kept(score: Estimate, native: Estimate | None, chance: float) -> float | None:
    if native is None or native.low is None or native.low <= chance:
        return None
    return (score.value - chance) / (native.value - chance)


def _by_depth(base: ItemScores, adapted: ItemScores, way: str) -> tuple[tuple[float, float, float], ...]:
    depths = sorted({depth for depth in base.depths if depth is not None})
    rows = []
    for depth in depths:
        there = [one == depth for one in base.depths]
        rows.append((depth, float(base.scores[way][there].mean()), float(adapted.scores[way][there].mean())))
    return tuple(rows)


def compare_suites(
    base: Sequence[ItemScores],
    adapted: Sequence[ItemScores],
    reasons: dict[tuple[str, int], str],
    settings: SuiteSettings,
    num_resamples: int,
    confidence: float,
) -> list[TaskResult]:
    """The result of every task, length and way of scoring, in the order of the settings.

    Both lists hold the same items, or at least (with two tokenizers) the same questions; differences are paired by
    item.
    """
    before = {(one.task, one.length): one for one in base}
    after = {(one.task, one.length): one for one in adapted}
    results = []
    ways = [way for way in (WRITTEN, CHOSEN) if any(way in one.scores for one in base)]
    for task in settings.tasks:
        for way in ways:
            chance = CHANCE_OF[way]
            native: list[Estimate | None] = [None, None]
            rows = []
            for length in settings.lengths:
                if (task, length) not in before or (task, length) not in after:
                    reason = reasons.get((task, length), "it doesn't fit into this length")
                    rows.append(TaskResult(task, length, way, chance, not_run=reason))
                    continue
                pair = before[task, length], after[task, length]
                values = [one.scores[way] for one in pair]
                shares = [_share(one, confidence) for one in values]
                if length == settings.native_length:
                    native = list(shares)
                difference = values[1] - values[0]
                seed = statistics.source_seed(settings.seed, f"{task} {length} {way}")
                estimate = Estimate(float(difference.mean()), None, None)
                if len(difference) >= 2:
                    ones = np.ones(len(difference))
                    replicates = statistics.resampled_ratios(difference[None], ones, num_resamples, seed)
                    bounds = statistics.percentile_interval(replicates[0], confidence, len(difference))
                    estimate = Estimate(estimate.value, *bounds)
                p_value = p_different(difference, seed, num_resamples)
                decided = statistics.outcome(estimate.negated(), len(difference), confidence, p_value)
                rows.append(
                    TaskResult(
                        task,
                        length,
                        way,
                        chance,
                        len(difference),
                        None,
                        shares[0],
                        shares[1],
                        None,
                        None,
                        estimate,
                        decided,
                        _by_depth(*pair, way),
                    )
                )
            results += [_with_kept(row, native) for row in rows]
    return results


def _with_kept(row: TaskResult, native: Sequence[Estimate | None]) -> TaskResult:
    if row.base is None or row.adapted is None:
        return row
    return replace(
        row,
        base_kept=_kept(row.base, native[0], row.chance),
        adapted_kept=_kept(row.adapted, native[1], row.chance),
    )


def effective_length(results: Sequence[TaskResult], task: str, way: str, model: str, native_length: int) -> int | None:
    """The longest length up to which the task is kept at every length from the native one on, for base or adapted.

    None where the model doesn't do the task above chance at its native length, or wasn't measured there.
    """
    longest = None
    for row in results:
        if row.task != task or row.way != way or row.length < native_length:
            continue
        kept = row.base_kept if model == "base" else row.adapted_kept
        if kept is None or kept < EFFECTIVE_SHARE:
            break
        longest = row.length
    return longest
