"""Claims about suites: a goal has to gain, every other suite has to be kept within its margin.

All models are asked the same items, in points: 0.02 is 2 of 100 items. A suite that could not be run is a claim that
is neither shown nor refuted. Items that occur in the training data decide nothing: what they would have said stands
beside the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from cpt_dist.config import CptConfig
from cpt_dist.evaluation.claims import CONTROL, GOAL, RETENTION, Claim, without
from cpt_dist.evaluation.statistics import wilson_interval
from cpt_dist.evaluation.suites.compare import Judge
from cpt_dist.evaluation.suites.run import Searched, ask, load_text_model, read_questions, search_items
from cpt_dist.evaluation.suites.suite_file import Suite
from cpt_dist.evaluation.suites.tasks import SuiteScores, load_tasks

UNIT = "points"


@dataclass(frozen=True)
class SuiteClaims:
    """What is claimed about suites."""

    claims: list[Claim]
    """About the items that were not found in the training data; these decide."""
    with_leaked: list[Claim]
    """The same claims about all items."""
    searched: Searched | None
    """None where `suites.contamination` is off."""
    nothing_to_lose: list[str]
    """Suites to be kept on which the base isn't above chance for certain."""


def suite_claims(
    config: CptConfig, folders: Mapping[str, str], report: Callable[[str], None] = lambda line: None
) -> SuiteClaims:
    """The claims about `config.suites.run`, after asking the models in `folders` (base, adapted and perhaps control).

    Raises UserError for mistakes in suite files and folders, and for a damaged shard.
    """
    questions = replace(read_questions(config), facts={}, prompts=[])
    tasks = load_tasks(questions.suites, config.suites.task_folders)
    scores: dict[str, dict[str, SuiteScores]] = {}
    for name, folder in folders.items():
        report(f"loading the {name} model")
        model = load_text_model(config, folder)
        scores[name] = ask(questions, tasks, model, config, lambda line, n=name: report(f"{n} model: {line}")).suites  # type: ignore[misc]
        del model
    judge = Judge(config.evaluation.confidence, config.evaluation.bootstrap, config.seed, config.suites.margin)
    found = []
    for suite in questions.suites:
        asked = {name: one[suite.name] for name, one in scores.items()}
        found.append(claim_of(suite, asked["base"], asked["adapted"], judge, config))
        if found[-1].kind == GOAL and "control" in asked:
            over = claim_of(suite, asked["control"], asked["adapted"], judge, config)
            found.append(replace(over, kind=CONTROL, threshold=0.0))
    searched = None
    if config.suites.contamination:
        measured = {claim.name for claim in found if claim.not_run is None}
        asked = {name: score for name, score in scores["adapted"].items() if name in measured}
        searched = search_items(config, asked, report)
    leaked = searched.leaked if searched else {}
    kept = [claim.name for claim in found if claim.kind == RETENTION and claim.not_run is None]
    floors = [name for name in kept if at_chance(scores["base"][name], judge.confidence)]
    return SuiteClaims([without(claim, leaked.get(claim.name, [])) for claim in found], found, searched, floors)


def at_chance(scores: SuiteScores, confidence: float) -> bool:
    """Whether a share of right answers isn't above chance for certain (Wilson's interval); False for other scores."""
    values = scores.values
    if not scores.higher_is_better or values.min() < 0 or values.max() > 1:
        return False
    return wilson_interval(float(values.mean()), len(values), confidence)[0] <= scores.chance.mean()


def claim_of(suite: Suite, other: SuiteScores, adapted: SuiteScores, judge: Judge, config: CptConfig) -> Claim:
    """The claim about one suite, from the scores of the adapted model and another one."""
    goal = suite.name in config.verdict.goals
    margin = config.verdict.margins.get(suite.name, 0.0) if goal else judge.margin_of(suite, len(adapted.values))
    reason = other.not_run or adapted.not_run
    if reason is None and other.keys != adapted.keys:
        reason = "the models were given different items"
    kind, threshold = (GOAL, margin) if goal else (RETENTION, -margin)
    if reason is not None:
        return Claim(suite.name, kind, threshold, UNIT, not_run=reason)
    sign = 1.0 if adapted.higher_is_better else -1.0
    return Claim(
        suite.name, kind, threshold, UNIT, sign * (adapted.values - other.values), np.ones(len(adapted.values))
    )
