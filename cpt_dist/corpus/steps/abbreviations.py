"""Medical abbreviations: left alone by default, as they are the vocabulary that the model is to learn.

If asked, the first of each gets its meaning in brackets behind it; the abbreviation itself always stays. Only forms
that mean one thing in a clinical note are known, in exactly this case: PT, TX and 12 pt are none of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from cpt_dist.corpus.step import CuratedDocument
from cpt_dist.corpus.steps.repair import with_counts

MEANINGS = {
    "hx": "history",
    "dx": "diagnosis",
    "tx": "treatment",
    "rx": "prescription",
    "sx": "symptoms",
    "fx": "fracture",
    "pt": "patient",
    "pts": "patients",
    "c/o": "complains of",
    "s/p": "status post",
    "h/o": "history of",
    "f/u": "follow-up",
    "r/o": "rule out",
    "HTN": "hypertension",
    "COPD": "chronic obstructive pulmonary disease",
    "CHF": "congestive heart failure",
    "SOB": "shortness of breath",
    "NKDA": "no known drug allergies",
    "PRN": "as needed",
    "b.i.d.": "twice a day",
    "t.i.d.": "three times a day",
}
"""Abbreviation -> meaning, both as they are written."""
_FOUND = re.compile(
    r"(?<![\w/.-])(?:" + "|".join(re.escape(form) for form in sorted(MEANINGS, key=len, reverse=True)) + r")(?![\w/-])"
)
_AFTER_NUMBER = re.compile(r"\d[ \t-]*$")
_MIN_DIFFERENT = 2


@dataclass(frozen=True)
class Abbreviations:
    """Puts the meaning behind the first of each; count abbreviations_annotated.

    A document with fewer than two different ones isn't taken for a clinical text, and stays as it is.
    """

    name: str = "abbreviations"

    def __call__(self, document: CuratedDocument) -> CuratedDocument:
        """The document with meanings added."""
        text, first = document.text, dict[str, int]()
        for match in _FOUND.finditer(text):
            if not _AFTER_NUMBER.search(text[max(match.start() - 4, 0) : match.start()]):
                first.setdefault(match.group(), match.end())
        if len(first) < _MIN_DIFFERENT:
            return document
        parts, end, added = list[str](), 0, 0
        for form, place in first.items():
            meaning = f" ({MEANINGS[form]})"
            if not text.startswith(meaning, place):
                parts += [text[end:place], meaning]
                end = place
                added += 1
        counts = with_counts(document, {"abbreviations_annotated": added})
        return replace(document, text="".join([*parts, text[end:]]), counts=counts)
