"""What the settings of curation steps must satisfy, apart from their types.

Each problem is one line with the value and what to do; `key` is where the settings stand, such as
data.sources.law.curation. Whether a model's file exists is seen when the steps are made.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from cpt_dist.curation_config import (
    ANNOTATE,
    COMPONENTS,
    CONTENTS,
    DETECTORS,
    DROP,
    FASTTEXT,
    HEADER_POLICIES,
    INPUT_ORDER,
    JOIN_ORDERS,
    KEEP,
    LABEL,
    PII_POLICIES,
    PII_TYPES,
    ChunkingConfig,
    JoiningConfig,
    LanguageConfig,
    PiiConfig,
    QualityConfig,
    StepsConfig,
)
from cpt_dist.errors import nearest, nearest_of

RELEVANCE_METHODS = ("classifier", "importance")
MODEL_MEASURES = ("density_ratio", "bits_per_byte", "perplexity_percentile", "relevance_raw", "keywords_per_1000_words")
_MAX_KEYWORD_WORDS = 3


def _choice(value: str, allowed: Iterable[str], key: str) -> list[str]:
    allowed = tuple(allowed)
    if value in allowed:
        return []
    return [f"{key}: '{value}' is unknown; {nearest_of(value, allowed)}"]


def _between(value: float, least: float, most: float, key: str) -> list[str]:
    return [] if least <= value <= most else [f"{key}: {value} must be between {least:g} and {most:g}"]


def _pairs(pairs: Mapping[str, Any], known: Iterable[str], key: str) -> list[str]:
    known, problems = tuple(known), []
    for name, pair in pairs.items():
        if name not in known:
            problems.append(f"{key}: '{name}' is no score; {nearest(name, known)}")
        numbers = [value for value in pair if value is not None]
        if len(pair) != 2 or not all(isinstance(value, int | float) and math.isfinite(value) for value in numbers):
            problems.append(f"{key}.{name}: {list(pair)} must be [least, most], each a number or null")
        elif len(numbers) == 2 and numbers[0] > numbers[1]:
            problems.append(f"{key}.{name}: {list(pair)} has least above most; swap them")
    return problems


def _language_problems(language: LanguageConfig, key: str) -> list[str]:
    problems = _choice(language.detector, DETECTORS, f"{key}.detector")
    problems += _choice(language.on_unwanted, (DROP, LABEL), f"{key}.on_unwanted")
    problems += _choice(language.unknown, (KEEP, DROP), f"{key}.unknown")
    problems += _choice(language.paragraphs, (KEEP, DROP), f"{key}.paragraphs")
    problems += _between(language.min_confidence, 0, 1, f"{key}.min_confidence")
    if language.detector == FASTTEXT and language.model is None:
        problems.append(f"{key}.model: detector fasttext needs the file of a model, such as lid.176.ftz; name it")
    if language.paragraphs == DROP and not language.wanted:
        problems.append(f"{key}.paragraphs: drop needs to know which languages stay; set wanted")
    return problems


def _quality_problems(quality: QualityConfig, measures: Iterable[str], key: str) -> list[str]:
    measures = (*measures, *MODEL_MEASURES)
    scores = ("quality", *COMPONENTS, *measures, "language_confidence")
    problems = _choice(quality.content, CONTENTS, f"{key}.content")
    for name, weight in quality.weights.items():
        problems += _choice(name, COMPONENTS, f"{key}.weights")
        if not (math.isfinite(weight) and weight >= 0):
            problems.append(f"{key}.weights.{name}: {weight} must be 0 or more")
    if quality.enabled and not any(quality.weights.values()):
        problems.append(f"{key}.weights: all are 0, so there is no quality; give one a weight, or set enabled=false")
    problems += _pairs(quality.bounds, measures, f"{key}.bounds")
    problems += _pairs(quality.thresholds, scores, f"{key}.thresholds")
    for name in quality.columns:
        problems += _choice(name, scores, f"{key}.columns")
    if quality.window_words < 1:
        problems.append(f"{key}.window_words: {quality.window_words} must be at least 1")
    if not quality.keywords_full > 0:
        problems.append(f"{key}.keywords_full: {quality.keywords_full} must be above 0")
    for keyword in quality.keywords:
        if not 1 <= len(keyword.split()) <= _MAX_KEYWORD_WORDS:
            problems.append(f"{key}.keywords: '{keyword}' must have one to {_MAX_KEYWORD_WORDS} words")
    perplexity, relevance = quality.perplexity, quality.relevance
    band = list(perplexity.band)
    if len(band) != 2 or not 0 <= band[0] < band[1] <= 1:
        problems.append(f"{key}.perplexity.band: {band} must be two percentiles between 0 and 1, the lower first")
    problems += _between(perplexity.order, 1, 8, f"{key}.perplexity.order")
    problems += _between(perplexity.bits, 10, 26, f"{key}.perplexity.bits")
    problems += _between(relevance.bits, 10, 24, f"{key}.relevance.bits")
    problems += _choice(relevance.method, RELEVANCE_METHODS, f"{key}.relevance.method")
    if perplexity.window_bytes < 64:
        problems.append(f"{key}.perplexity.window_bytes: {perplexity.window_bytes} must be at least 64")
    if quality.sample_characters < 10_000:
        problems.append(f"{key}.sample_characters: {quality.sample_characters} must be at least 10000")
    if relevance.epochs < 1:
        problems.append(f"{key}.relevance.epochs: {relevance.epochs} must be at least 1")
    return problems


def _pii_problems(pii: PiiConfig, key: str) -> list[str]:
    problems = _choice(pii.policy, PII_POLICIES, f"{key}.policy") + _choice(pii.names, PII_POLICIES, f"{key}.names")
    for type, policy in pii.policies.items():
        problems += _choice(type, PII_TYPES, f"{key}.policies")
        problems += _choice(policy, PII_POLICIES, f"{key}.policies.{type}")
    if pii.drop_from < 1:
        problems.append(f"{key}.drop_from: {pii.drop_from} must be at least 1")
    if pii.names != "off" and pii.names_model is None:
        problems.append(f"{key}.names_model: names={pii.names} needs a spaCy model, such as en_core_web_sm; name it")
    return problems


def _joining_problems(joining: JoiningConfig, key: str) -> list[str]:
    problems = _choice(joining.order, JOIN_ORDERS, f"{key}.order")
    if joining.by == "":
        problems.append(f"{key}.by: '' is no field; name the field that documents are joined by, or set null")
    if joining.by and joining.order != INPUT_ORDER and not joining.order_field:
        problems.append(f"{key}.order_field: order={joining.order} needs a field, such as path; name it")
    return problems


def _chunking_problems(chunking: ChunkingConfig, key: str) -> list[str]:
    problems = []
    if chunking.max_characters < 0:
        problems.append(f"{key}.max_characters: {chunking.max_characters} must be 0 (never cut) or more")
    if not 0 <= chunking.min_fill < 1:
        problems.append(f"{key}.min_fill: {chunking.min_fill} must be at least 0 and below 1")
    return problems


def steps_problems(settings: StepsConfig, measures: Iterable[str], key: str) -> list[str]:
    """What is wrong with the settings of one source; `measures` are the names of `corpus.steps.measures`."""
    cleaning = settings.cleaning
    return [
        *_language_problems(settings.language, f"{key}.language"),
        *_quality_problems(settings.quality, measures, f"{key}.quality"),
        *_pii_problems(settings.pii, f"{key}.pii"),
        *_choice(cleaning.abbreviations, (KEEP, ANNOTATE), f"{key}.cleaning.abbreviations"),
        *_choice(cleaning.generated, (KEEP, DROP), f"{key}.cleaning.generated"),
        *_choice(cleaning.licence_headers, HEADER_POLICIES, f"{key}.cleaning.licence_headers"),
        *_joining_problems(settings.joining, f"{key}.joining"),
        *_chunking_problems(settings.chunking, f"{key}.chunking"),
    ]
