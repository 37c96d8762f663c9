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

from cpt_dist.corpus.step import Step
from cpt_dist.corpus.steps.content import Content
from cpt_dist.corpus.steps.language import Language
from cpt_dist.corpus.steps.pii import Pii
from cpt_dist.corpus.steps.repair import Identify, Normalise, Repair
from cpt_dist.corpus.steps.scores import ModelScore, Scores, Thresholds
from cpt_dist.curation_config import NO_DETECTOR, OFF, StepsConfig


def steps_before_dedup(settings: StepsConfig) -> list[Step]:
    """Repair, normalise and identify: after them a document has the id that exact dedup compares."""
    repair: list[Step] = [Repair()] if settings.repair.mojibake else []
    return [*repair, Normalise(), Identify()]


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
    pii = settings.pii
    uses_pii = pii.policy != OFF or any(policy != OFF for policy in pii.policies.values())
    return [Pii(pii)] if uses_pii else []
