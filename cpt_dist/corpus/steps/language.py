"""Which language a document is in, and what becomes of the others.

pycld2 (Compact Language Detector 2) reads the whole text, so a mixed document shows; a fastText model is read if its
file is given. Code isn't judged: its words are English whatever it is about.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from cpt_dist.corpus.step import CuratedDocument, Dropped
from cpt_dist.corpus.steps.content import CONTENT
from cpt_dist.corpus.steps.repair import with_counts
from cpt_dist.curation_config import CODE, DROP, FASTTEXT, LanguageConfig
from cpt_dist.errors import UserError

LANGUAGE, CONFIDENCE = "language", "language_confidence"
UNKNOWN = "unknown"
_PARAGRAPH = re.compile(r"(?:(?!\n[ \t]*\n).)+(?:\n[ \t]*\n\s*)?|\n[ \t]*\n\s*", re.DOTALL)
_LABEL = "__label__"
_FASTTEXT_LANGUAGES = 3


def _pycld2_shares(text: str) -> dict[str, float]:
    import pycld2

    try:
        reliable, _, details = pycld2.detect(text.encode("utf-8"), bestEffort=False)
    except pycld2.error:  # it refuses code points that are no characters, such as U+FFFE
        printable = "".join(character if character.isprintable() else " " for character in text)
        reliable, _, details = pycld2.detect(printable.encode("utf-8"), bestEffort=False)
    if not reliable:
        return {}
    return {code: percent / 100 for _, code, percent, _ in details if code != "un"}


@lru_cache(maxsize=4)
def _fasttext_model(path: str) -> Any:
    try:
        import fasttext
    except ImportError as error:
        raise UserError("language.detector: fasttext isn't installed; pip install 'cpt_dist[fasttext]'") from error
    try:
        return fasttext.load_model(path)
    except ValueError as error:
        raise UserError(
            f"language.model: '{path}' is no fastText model ({error}); give its .bin or .ftz file"
        ) from error


def _fasttext_shares(text: str, path: str) -> dict[str, float]:
    # Not model.predict(): it returns arrays in a way that numpy 2 refuses. A line end would end the text.
    pairs = _fasttext_model(path).f.predict(text.replace("\n", " ") + "\n", _FASTTEXT_LANGUAGES, 0.0, "strict")
    return {label.removeprefix(_LABEL): min(probability, 1.0) for probability, label in pairs}


def in_languages(code: str, wanted: Iterable[str]) -> bool:
    """Whether a code, such as zh-Hant, is one of `wanted` or a variant of one."""
    return any(code == want or code.startswith((f"{want}-", f"{want}_")) for want in wanted)


@dataclass(frozen=True)
class Language:
    """Labels the language of a document, and applies the source's policy to those in others."""

    settings: LanguageConfig
    name: str = "language"

    def shares(self, text: str) -> Mapping[str, float]:
        """Language -> its share of the text or probability, the largest first; empty where none can be told."""
        if self.settings.detector == FASTTEXT:
            found = _fasttext_shares(text, self.settings.model or "")
        else:
            found = _pycld2_shares(text)
        return dict(sorted(found.items(), key=lambda pair: (-pair[1], pair[0])))

    def _wanted_share(self, shares: Mapping[str, float]) -> float:
        return sum(share for code, share in shares.items() if in_languages(code, self.settings.wanted))

    def _without_others(self, document: CuratedDocument) -> CuratedDocument:
        kept, removed = [], 0
        for match in _PARAGRAPH.finditer(document.text):
            paragraph = match.group()
            if len(paragraph.encode("utf-8")) >= self.settings.min_paragraph_bytes:
                shares = self.shares(paragraph)
                if shares and self._wanted_share(shares) < self.settings.min_confidence:
                    removed += 1
                    continue
            kept.append(paragraph)
        if not removed:
            return document
        counts = with_counts(document, {"paragraphs_of_other_languages": removed})
        return replace(document, text="".join(kept), counts=counts)

    def __call__(self, document: CuratedDocument) -> CuratedDocument | Dropped:
        """The document with the label language and the score language_confidence, or Dropped("language")."""
        if document.labels.get(CONTENT) == CODE:
            return document
        settings = self.settings
        shares = self.shares(document.text)
        top, confidence = next(iter(shares.items()), (UNKNOWN, 0.0))
        document = replace(
            document,
            labels={**document.labels, LANGUAGE: top},
            scores={**document.scores, CONFIDENCE: confidence},
        )
        if not shares:
            if settings.wanted and settings.unknown == DROP:
                return Dropped("language", f"unknown, wanted {', '.join(settings.wanted)}", {LANGUAGE: UNKNOWN})
            return document
        if not settings.wanted:
            return document
        wanted = self._wanted_share(shares)
        if wanted < settings.min_confidence:
            if settings.on_unwanted == DROP:
                asked = ", ".join(settings.wanted)
                detail = f"{top} {confidence:.2f}, wanted {asked} at least {settings.min_confidence}"
                return Dropped("language", detail, {LANGUAGE: top})
            return replace(document, counts=with_counts(document, {"unwanted_language": 1}))
        if settings.paragraphs == DROP and wanted < 1:
            return self._without_others(document)
        return document
