"""Fits the models of all sources of a curation on their samples, before any document is scored.

Samples come from `sample.py`; what is fitted is one file per source for perplexity, and one for relevance that all
sources with the same settings share: all their domain texts against all their replay texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from cpt_dist.corpus.steps.model_scores import fit_perplexity, fit_relevance
from cpt_dist.curation_config import RelevanceConfig, StepsConfig


@dataclass(frozen=True)
class SourceSample:
    """What models of a source are fitted on."""

    settings: StepsConfig
    texts: Sequence[str]
    is_domain: bool


@dataclass(frozen=True)
class SourceModels:
    """Files of the models that score a source; None where there is none."""

    perplexity: Path | None
    relevance: Path | None


def needs_models(settings: StepsConfig) -> bool:
    """Whether a source's documents are scored by a model that has to be fitted first."""
    quality = settings.quality
    return quality.enabled and (quality.perplexity.enabled or quality.relevance.enabled)


def _wants_relevance(sample: SourceSample) -> bool:
    return sample.settings.quality.enabled and sample.settings.quality.relevance.enabled


def fit_models(samples: Mapping[str, SourceSample], folder: Path) -> dict[str, SourceModels]:
    """Source -> its models, written into `folder` under names that are their checksums.

    Without replay text (or without domain text) there is no relevance, as there is nothing to tell it from.
    """
    groups: dict[tuple[object, ...], tuple[RelevanceConfig, list[SourceSample]]] = {}
    for _, sample in sorted(samples.items()):
        if _wants_relevance(sample):
            config = sample.settings.quality.relevance
            groups.setdefault(astuple(config), (config, []))[1].append(sample)
    relevance = {}
    for key, (config, group) in groups.items():
        domain, replay = ([t for s in group if s.is_domain is kind for t in s.texts] for kind in (True, False))
        relevance[key] = fit_relevance(domain, replay, config, folder, "relevance")
    models = {}
    for name, sample in samples.items():
        quality, perplexity = sample.settings.quality, None
        if quality.enabled and quality.perplexity.enabled:
            perplexity = fit_perplexity(sample.texts, quality.perplexity, folder, f"perplexity-{name}")
        shared = relevance[astuple(quality.relevance)] if _wants_relevance(sample) else None
        models[name] = SourceModels(perplexity, shared)
    return models
