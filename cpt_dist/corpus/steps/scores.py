"""The step that scores a document, and the step that drops by scores where the user set thresholds.

Scores never drop anything by themselves. `quality` is the weighted mean of the components that a document has: one
that is missing (a model that wasn't fitted, rules for prose on code) takes its weight with it and counts neither as 0
nor as 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from cpt_dist.corpus.step import CuratedDocument, Dropped
from cpt_dist.corpus.steps.content import CONTENT
from cpt_dist.corpus.steps.density import density
from cpt_dist.corpus.steps.language import LANGUAGE, in_languages
from cpt_dist.corpus.steps.measures import held, judge, measure
from cpt_dist.corpus.steps.repair import with_counts
from cpt_dist.corpus.steps.text_view import TextView, excerpt, ngrams, phrase_hash
from cpt_dist.curation_config import CODE, PROSE, QualityConfig

QUALITY = "quality"
DENSITY_BOUNDS = {PROSE: (0.6, 1.4)}
DENSITY_BOUNDS_OF_OTHERS = (0.3, 1.6)
"""Bounds of `density_ratio` for code and tables, which repeat their frame."""


class ModelScore(Protocol):
    """A score by a model that was fitted on a sample; it pickles as the model's file and fingerprint."""

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the raw numbers."""

    @property
    def component(self) -> str:
        """Name of the component made of them."""

    def __call__(self, view: TextView) -> tuple[tuple[float, ...], float]:
        """(raw numbers, component between 0 and 1)."""


def combine(components: Mapping[str, float], weights: Mapping[str, float]) -> float | None:
    """Weighted mean of `components` over those with a weight; None where there is none."""
    present = {name: weights.get(name, 0.0) for name in components if weights.get(name, 0.0) > 0}
    total = sum(present.values())
    return sum(components[name] * weight for name, weight in present.items()) / total if total else None


def count_keywords(view: TextView, keywords: Sequence[str]) -> int:
    """Occurrences of the keywords as whole words, phrases of up to three words included."""
    wanted: dict[int, list[int]] = {}
    for keyword in keywords:
        length, value = phrase_hash(keyword)
        wanted.setdefault(length, []).append(value)
    run, found = view.term_hashes, 0
    for length in range(1, max(wanted, default=0) + 1):
        run = run if length == 1 else ngrams(view.term_hashes, run, length) if len(run) > 1 else run[:0]
        if length in wanted:
            found += int(np.isin(run, np.array(wanted[length], dtype=np.uint64)).sum())
    return found


@dataclass(frozen=True)
class Scores:
    """Adds measures, components and `quality` to a document; counts of missed rules under missed.FAMILY.MEASURE."""

    settings: QualityConfig
    models: tuple[ModelScore, ...] = ()
    name: str = "scores"

    def __call__(self, document: CuratedDocument) -> CuratedDocument:
        """The document with its scores; its text is not changed."""
        settings = self.settings
        read = excerpt(document.text)
        view = TextView(read)
        content = document.labels.get(CONTENT, PROSE)
        language = document.labels.get(LANGUAGE)
        has_stop_words = language is None or in_languages(language, settings.stop_word_languages)
        measures = measure(view, content, settings.stop_words if has_stop_words else None, settings.window_words)
        measures["density_ratio"] = density(view)
        components, missed = judge(measures, content, settings.bounds)
        least, most = settings.bounds.get("density_ratio", DENSITY_BOUNDS.get(content, DENSITY_BOUNDS_OF_OTHERS))
        components["density"] = held(measures["density_ratio"], least, most)
        if settings.keywords and content != CODE:
            per_thousand = 1000 * count_keywords(view, settings.keywords) / max(len(view.words), 1)
            measures["keywords_per_1000_words"] = per_thousand
            components["keywords"] = min(per_thousand / settings.keywords_full, 1.0)
        for model in self.models:
            raw, component = model(view)
            measures.update(zip(model.measures, raw, strict=True))
            components[model.component] = component
        quality = combine(components, settings.weights)
        scores = {**document.scores, **measures, **components}
        if quality is not None:
            scores[QUALITY] = quality
        added = {f"missed.{name}": 1 for name in missed} | {"scored_by_excerpt": int(read is not document.text)}
        return replace(document, scores=scores, counts=with_counts(document, added))


@dataclass(frozen=True)
class Thresholds:
    """Drops documents with a score outside [least, most]; a score that a document doesn't have drops nothing."""

    thresholds: Mapping[str, Sequence[float | None]]
    name: str = "thresholds"

    def __call__(self, document: CuratedDocument) -> CuratedDocument | Dropped:
        """The document, or Dropped with the name of the score, its value and the threshold."""
        for name, (least, most) in self.thresholds.items():
            value = document.scores.get(name)
            if value is None:
                continue
            if least is not None and value < least:
                return Dropped(f"{name}_low", f"{name} {value:.4g}, at least {least:g} wanted")
            if most is not None and value > most:
                return Dropped(f"{name}_high", f"{name} {value:.4g}, at most {most:g} wanted")
        return document
