from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from cpt_dist.corpus.steps.measures import MEASURES
from cpt_dist.curation_config import PII_TYPES, StepsConfig
from cpt_dist.curation_profiles import PROFILES, resolve_steps
from cpt_dist.curation_validation import steps_problems
from cpt_dist.errors import UserError

KEY = "data.sources.law.curation"


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_is_valid(profile):
    assert steps_problems(resolve_steps(profile, {}, KEY), MEASURES, KEY) == []


def test_a_source_lays_its_values_over_its_profile():
    settings = resolve_steps("legal", {"quality": {"weights": {"c4": 0.3}}, "pii": {"policy": "count"}}, KEY)
    assert settings.quality.weights["c4"] == 0.3
    assert settings.quality.weights["keywords"] == 0.5
    assert settings.cleaning.citations
    assert settings.pii.policy == "count"
    assert resolve_steps("general", {}, KEY) == StepsConfig()


def test_an_unknown_profile_or_field_is_an_error_with_the_place():
    with pytest.raises(UserError, match=r"law\.curation\.profile: 'legl' is unknown; .*legal"):
        resolve_steps("legl", {}, KEY)
    with pytest.raises(UserError, match=r"law\.curation\.language\.wnted"):
        resolve_steps("legal", {"language": {"wnted": ["en"]}}, KEY)
    with pytest.raises(UserError, match=r"law\.curation\.pii\.drop_from"):
        resolve_steps("legal", {"pii": {"drop_from": "many"}}, KEY)


def test_all_problems_are_told_at_once():
    settings = resolve_steps(
        "general",
        {
            "language": {"detector": "fasttext", "paragraphs": "drop", "min_confidence": 2},
            "quality": {
                "content": "poem",
                "weights": {"gofer": 1.0, "c4": -1.0},
                "bounds": {"word": [1, 2], "words": [3]},
                "thresholds": {"quality": [0.9, 0.1], "variety": ["low", None]},
                "columns": ["qualty"],
                "keywords": ["a b c d"],
                "keywords_full": 0,
                "window_words": 0,
                "perplexity": {"band": [0.9, 0.1], "order": 0, "bits": 40, "window_bytes": 1},
                "relevance": {"bits": 1, "method": "guess", "epochs": 0},
                "sample_characters": 1,
            },
            "pii": {"policy": "hide", "policies": {"fone": "mask", "email": "hide"}, "drop_from": 0, "names": "mask"},
            "cleaning": {"abbreviations": "expand", "generated": "mask", "licence_headers": "drop"},
            "chunking": {"max_characters": -1, "min_fill": 1},
        },
        KEY,
    )
    problems = steps_problems(settings, MEASURES, KEY)
    places = [problem.split(":")[0].removeprefix(f"{KEY}.") for problem in problems]
    assert places == [
        "language.min_confidence",
        "language.model",
        "language.paragraphs",
        "quality.content",
        "quality.weights.c4",
        "quality.weights",
        "quality.bounds",
        "quality.bounds.words",
        "quality.thresholds.quality",
        "quality.thresholds.variety",
        "quality.columns",
        "quality.window_words",
        "quality.keywords_full",
        "quality.keywords",
        "quality.perplexity.band",
        "quality.perplexity.order",
        "quality.perplexity.bits",
        "quality.relevance.bits",
        "quality.relevance.method",
        "quality.perplexity.window_bytes",
        "quality.sample_characters",
        "quality.relevance.epochs",
        "pii.policy",
        "pii.policies",
        "pii.policies.email",
        "pii.drop_from",
        "pii.names_model",
        "cleaning.abbreviations",
        "cleaning.generated",
        "cleaning.licence_headers",
        "chunking.max_characters",
        "chunking.min_fill",
    ]
    assert all(problem.startswith(KEY) for problem in problems)


def test_the_example_of_the_documentation_is_valid():
    page = (Path(__file__).resolve().parents[1] / "docs" / "curation_steps.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    own = yaml.safe_load(example)["curation"]
    settings = resolve_steps(own.pop("profile"), own, KEY)
    assert steps_problems(settings, MEASURES, KEY) == []
    assert settings.chunking.max_characters == 200_000


def test_every_type_of_pii_is_documented_once():
    assert len(set(PII_TYPES)) == len(PII_TYPES)
