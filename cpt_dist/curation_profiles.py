"""Profiles of curation: what differs from the defaults for legal, medical, financial and general text and for code.

A profile is a set of values under `StepsConfig`, nothing else; `resolve_steps` lays a source's own values on top of it.
No profile drops a document for its quality: thresholds are the user's, after a look at the report.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cpt_dist.curation_config import StepsConfig
from cpt_dist.errors import UserError, nearest_of

PROFILES: dict[str, dict[str, Any]] = {
    "general": {},
    "legal": {
        "cleaning": {"citations": True, "page_furniture": True},
        "quality": {
            # Opinions and statutes number and indent their lines and cite more than they end sentences.
            "bounds": {"mean_word_length": [3, 12], "terminal_lines": [0.05, None], "letter_words": [0.7, None]},
            "weights": {"c4": 0.0, "keywords": 0.5},
            "keywords": [
                "plaintiff", "defendant", "court", "statute", "appellant", "appellee", "petitioner", "respondent",
                "jurisdiction", "judgment", "hereinafter", "herein", "pursuant", "contract", "agreement", "liability",
                "licensee", "licensor", "indemnify", "breach", "plea", "tort", "damages", "negligence", "injunction",
                "due process", "motion to dismiss", "summary judgment", "habeas corpus", "prima facie", "res judicata",
                "stare decisis", "governing law", "force majeure", "intellectual property",
            ],
        },
    },
    "medical": {
        "quality": {
            # Notes and code lists are telegraphic: short lines, few sentences, numbers and abbreviations.
            "bounds": {
                "words": [20, 100_000], "letter_words": [0.6, None], "terminal_lines": [None, None],
                "short_lines": [None, 0.9],
            },
            "weights": {"c4": 0.0, "fineweb": 0.25, "keywords": 0.5},
            "keywords": [
                "patient", "patients", "diagnosis", "treatment", "symptoms", "syndrome", "disease", "disorder", "acute",
                "chronic", "clinical", "dose", "therapy", "surgery", "lesion", "carcinoma", "infection", "fracture",
                "hypertension", "diabetes", "mellitus", "blood pressure", "history of", "adverse events",
                "randomized controlled trial", "physical examination", "differential diagnosis", "side effects",
            ],
        },
    },
    "finance": {
        "cleaning": {"page_furniture": True},
        "quality": {
            "bounds": {"letter_words": [0.55, None], "terminal_lines": [0.05, None], "digits": [None, 0.4]},
            "weights": {"c4": 0.0, "keywords": 0.5},
            "keywords": [
                "revenue", "earnings", "shares", "shareholders", "dividend", "assets", "liabilities", "equity",
                "fiscal", "quarter", "income", "expenses", "interest", "loan", "loans", "credit",
                "securities", "bond", "bonds",
                "portfolio", "goodwill", "ebitda", "net income", "cash flow", "balance sheet", "interest rate",
                "fair value", "per share", "risk factors", "operating expenses", "income taxes",
            ],
        },
    },
    "code": {
        "repair": {"mojibake": False, "unicode": False},
        "language": {"detector": "none"},
        "quality": {"content": "code", "perplexity": {"enabled": True}},
        # A placeholder in a string or a licence header changes the program, so hits are only counted.
        "pii": {"policy": "count"},
        "cleaning": {"generated": "drop"},
        "joining": {"order": "dependencies"},
    },
}  # fmt: skip
"""Name -> values under StepsConfig that differ from the defaults."""


def resolve_steps(profile: str, overrides: Mapping[str, Any], key: str) -> StepsConfig:
    """The settings of one source: defaults, then `profile`, then `overrides`.

    Dictionaries merge key by key, lists are replaced. Raises UserError, prefixed by `key` (such as
    data.sources.law.curation), for an unknown profile, an unknown field and a value of the wrong type.
    """
    if profile not in PROFILES:
        raise UserError(f"{key}.profile: '{profile}' is unknown; {nearest_of(profile, PROFILES)}")
    merged = OmegaConf.merge(OmegaConf.structured(StepsConfig), PROFILES[profile])
    try:
        merged = OmegaConf.merge(merged, dict(overrides))
    except OmegaConfBaseException as error:
        place, message = error.full_key or "", str(error).splitlines()[0]
        raise UserError(f"{key}.{place}: {message}; docs/configuration.md lists the fields of curation") from error
    resolved = OmegaConf.to_object(merged)
    assert isinstance(resolved, StepsConfig)
    return resolved
