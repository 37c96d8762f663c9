"""Names of persons, by presidio: an option, as it needs a spaCy model and is hundreds of times slower than patterns.

The model has to be installed beforehand; presidio itself would try to fetch one. Long texts are given to it by
paragraphs, as spaCy refuses more than a million characters.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from cpt_dist.corpus.step import CuratedDocument, Dropped
from cpt_dist.corpus.steps.pii import placeholder, secret_key
from cpt_dist.corpus.steps.repair import with_counts
from cpt_dist.curation_config import DROP, MASK, PiiConfig
from cpt_dist.errors import UserError

PERSON = "person"
_PIECE_CHARACTERS = 20_000


@lru_cache(maxsize=2)
def _analyzer(language: str, model: str) -> Any:
    try:
        from presidio_analyzer import AnalyzerEngine
        from presidio_analyzer.nlp_engine import NlpEngineProvider
    except ImportError as error:
        raise UserError(
            "pii.names: presidio isn't installed; pip install 'cpt_dist[names]', or set names=off"
        ) from error
    if importlib.util.find_spec(model) is None and not Path(model).is_dir():
        raise UserError(f"pii.names_model: the spaCy model '{model}' isn't installed; install it, or give its folder")
    engine = {"nlp_engine_name": "spacy", "models": [{"lang_code": language, "model_name": model}]}
    provider = NlpEngineProvider(nlp_configuration=engine)
    return AnalyzerEngine(nlp_engine=provider.create_engine(), supported_languages=[language])


def _pieces(text: str) -> list[tuple[int, str]]:
    """(offset, piece) of about 20,000 characters, cut after a line end where there is one."""
    pieces, start = [], 0
    while start < len(text):
        end = min(start + _PIECE_CHARACTERS, len(text))
        if end < len(text):
            end = text.rfind("\n", start, end) + 1 or end
        pieces.append((start, text[start:end]))
        start = end
    return pieces


@dataclass(frozen=True)
class PersonNames:
    """Masks, counts or drops by names of persons; counts pii_person and pii_person_masked."""

    settings: PiiConfig
    name: str = "pii_names"

    def _spans(self, text: str) -> list[tuple[int, int]]:
        analyzer = _analyzer(self.settings.names_language, self.settings.names_model or "")
        spans = []
        for offset, piece in _pieces(text):
            for hit in analyzer.analyze(text=piece, entities=["PERSON"], language=self.settings.names_language):
                spans.append((offset + hit.start, offset + hit.end))
        chosen: list[tuple[int, int]] = []
        for start, end in sorted(spans):
            if not chosen or start >= chosen[-1][1]:
                chosen.append((start, end))
        return chosen

    def __call__(self, document: CuratedDocument) -> CuratedDocument | Dropped:
        """The document with placeholders and counts, or Dropped("pii")."""
        spans, policy = self._spans(document.text), self.settings.names
        if not spans:
            return document
        if policy == DROP and len(spans) >= self.settings.drop_from:
            return Dropped("pii", f"{len(spans)} x {PERSON}")
        if policy != MASK:
            return replace(document, counts=with_counts(document, {f"pii_{PERSON}": len(spans)}))
        key, text, parts, end = secret_key(self.settings.key_variable), document.text, [], 0
        for start, stop in spans:
            parts += [text[end:start], placeholder(PERSON, text[start:stop].encode("utf-8"), key)]
            end = stop
        counts = with_counts(document, {f"pii_{PERSON}": len(spans), f"pii_{PERSON}_masked": len(spans)})
        return replace(document, text="".join([*parts, text[end:]]), counts=counts)
