"""The steps of curation, and their order for one source.

    steps_before_dedup        repair, normalise, identify
    (exact dedup)
    steps_before_near_dedup   content, language, scores, thresholds
    (near dedup)
    steps_after_near_dedup    PII, domain cleaning
    (decontamination)
    steps_of_chunking         chunking

What stands in brackets needs more than one document and isn't here. Steps are built once in each process.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cpt_dist.corpus.step import Splitter, Step
from cpt_dist.corpus.steps.abbreviations import Abbreviations
from cpt_dist.corpus.steps.chunking import Chunk
from cpt_dist.corpus.steps.citations import Citations
from cpt_dist.corpus.steps.code import CodeCleaning
from cpt_dist.corpus.steps.content import Content
from cpt_dist.corpus.steps.language import Language
from cpt_dist.corpus.steps.model_scores import Perplexity, Relevance
from cpt_dist.corpus.steps.pages import PageFurniture
from cpt_dist.corpus.steps.pii import Pii
from cpt_dist.corpus.steps.pii_names import PersonNames
from cpt_dist.corpus.steps.repair import Identify, Normalise, Repair
from cpt_dist.corpus.steps.scores import ModelScore, Scores, Thresholds
from cpt_dist.curation_config import ANNOTATE, DROP, KEEP, NO_DETECTOR, OFF, StepsConfig


def steps_before_dedup(settings: StepsConfig) -> list[Step]:
    """Repair, normalise and identify: after them a document has the id that exact dedup compares."""
    repair: list[Step] = [Repair()] if settings.repair.mojibake else []
    return [*repair, Normalise(settings.repair.unicode), Identify()]


def model_scores(settings: StepsConfig, perplexity: Path | None, relevance: Path | None) -> list[ModelScore]:
    """The scores by models that `model_scores.fit_perplexity` and `fit_relevance` made, where there are any."""
    quality, models = settings.quality, list[ModelScore]()
    if quality.perplexity.enabled and perplexity is not None:
        low, high = quality.perplexity.band
        models.append(Perplexity(perplexity, (low, high)))
    if quality.relevance.enabled and relevance is not None:
        models.append(Relevance(relevance))
    return models


def steps_before_near_dedup(settings: StepsConfig, models: Sequence[ModelScore] = ()) -> list[Step]:
    """Content, language, scores (with models of the source, where they were fitted) and thresholds."""
    steps: list[Step] = [Content(settings.quality.content)]
    if settings.language.detector != NO_DETECTOR:
        steps.append(Language(settings.language))
    if settings.quality.enabled:
        steps.append(Scores(settings.quality, tuple(models)))
        if settings.quality.thresholds:
            steps.append(Thresholds({name: tuple(pair) for name, pair in settings.quality.thresholds.items()}))
    return steps


def steps_after_near_dedup(settings: StepsConfig) -> list[Step]:
    """PII and the cleaners of the profile; the id stays that of the text before them."""
    pii, cleaning, steps = settings.pii, settings.cleaning, list[Step]()
    if pii.policy != OFF or any(policy != OFF for policy in pii.policies.values()):
        steps.append(Pii(pii))
    if pii.names != OFF:
        steps.append(PersonNames(pii))
    if cleaning.page_furniture:
        steps.append(PageFurniture())
    if cleaning.citations:
        steps.append(Citations())
    if cleaning.abbreviations == ANNOTATE:
        steps.append(Abbreviations())
    if cleaning.generated == DROP or cleaning.licence_headers != KEEP:
        steps.append(CodeCleaning(cleaning.generated == DROP, cleaning.licence_headers))
    return steps


def steps_of_chunking(settings: StepsConfig) -> list[Splitter]:
    """The cutting of over-long documents, if the source asks for it; nothing may change a text after it."""
    return [Chunk(settings.chunking)] if settings.chunking.max_characters else []


def steps_after_dedup(settings: StepsConfig, models: Sequence[ModelScore] = ()) -> list[Step | Splitter]:
    """All steps that follow the exact dedup, for whoever has no near-dedup or decontamination in between."""
    return [
        *steps_before_near_dedup(settings, models),
        *steps_after_near_dedup(settings),
        *steps_of_chunking(settings),
    ]
