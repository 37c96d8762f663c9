"""The steps that a source's documents go through, by the stage of the pipeline that runs them.

They are built once in a process, from the source's settings (`cpt_dist.corpus.steps`). Evaluation texts are only
brought into the canonical form, so that they compare with the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cpt_dist.config import CptConfig
from cpt_dist.corpus.curation.fit import is_fitted, models_of
from cpt_dist.corpus.curation.job import CuratedSource, Job
from cpt_dist.corpus.step import Splitter, Step
from cpt_dist.corpus.steps import (
    model_scores,
    steps_after_near_dedup,
    steps_before_dedup,
    steps_before_near_dedup,
    steps_of_chunking,
)
from cpt_dist.corpus.steps.fit import SourceModels
from cpt_dist.corpus.steps.measures import MEASURES
from cpt_dist.corpus.steps.repair import Identify, Normalise
from cpt_dist.curation_config import StepsConfig
from cpt_dist.curation_profiles import resolve_steps
from cpt_dist.curation_validation import steps_problems
from cpt_dist.errors import UserError

VERSION = 2
"""Raised when steps give other results from the same settings, so that folders made before are not gone on with."""
DEFAULT_PROFILE = "general"
Steps = Sequence[Step | Splitter]


def resolved_steps(curation: Mapping[str, Any], source: str) -> StepsConfig:
    """The settings of a source's steps: its profile's, with its own on top. Raises UserError for unknown ones."""
    own = {key: value for key, value in curation.items() if key != "profile"}
    return resolve_steps(str(curation.get("profile", DEFAULT_PROFILE)), own, f"data.sources.{source}.curation")


def shard_scores(steps: StepsConfig) -> list[str]:
    """The scores that are to become columns of shards."""
    return list(steps.quality.columns)


def before_dedup(source: CuratedSource) -> Steps:
    """Raw text to normalised text with its id."""
    return [Normalise(), Identify()] if source.steps is None else steps_before_dedup(source.steps)


def before_near_dedup(job: Job, source: CuratedSource) -> Steps:
    """Labels, scores (with the models that were fitted), and drops by them."""
    if source.steps is None:
        return []
    models = models_of(job, source) if is_fitted(source) else SourceModels(None, None)
    return steps_before_near_dedup(source.steps, model_scores(source.steps, models.perplexity, models.relevance))


def after_near_dedup(source: CuratedSource) -> Steps:
    """What changes the text: PII, cleaners."""
    return [] if source.steps is None else steps_after_near_dedup(source.steps)


def of_chunking(source: CuratedSource) -> Steps:
    """What parts the text."""
    return [] if source.steps is None else steps_of_chunking(source.steps)


def curation_problems(config: CptConfig) -> list[str]:
    """What is wrong with the settings of steps of all sources, one line each."""
    problems: list[str] = []
    for name, source in config.data.sources.items():
        if source.curation is None:
            continue
        try:
            steps = resolved_steps(source.curation, name)
        except UserError as error:
            problems.extend(error.problems)
        else:
            problems.extend(steps_problems(steps, MEASURES, f"data.sources.{name}.curation"))
    return problems
