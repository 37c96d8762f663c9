"""US case and statute citations: which stretches of a text are citations, and one way to space them.

The grammar is strict: volume, a reporter with its full stops, page, and after that what can follow a citation. What
doesn't parse stays as it is, so nothing becomes a citation that was none (98 F 2 3, the 5 US 10 teams).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from cpt_dist.corpus.step import CuratedDocument
from cpt_dist.corpus.steps.repair import with_counts

_STATES = (
    "Ala. Ariz. Ark. Cal. Colo. Conn. Del. Fla. Ga. Haw. Ill. Ind. Kan. Ky. La. Mass. Md. Me. Mich. Minn. Miss. Mo."
    " Mont. N.C. N.D. N.H. N.J. N.M. N.Y. Neb. Nev. Okla. Or. Pa. R.I. S.C. S.D. Tenn. Tex."
    " Va. Vt. W.Va. Wash. Wis. Wyo."
)
REPORTERS: dict[str, int] = {
    "U.S.": 620, "S. Ct.": 160, "L. Ed.": 100, "L. Ed. 2d": 240,
    "F.": 300, "F.2d": 999, "F.3d": 999, "F.4th": 300, "F. Supp.": 999, "F. Supp. 2d": 999, "F. Supp. 3d": 999,
    "F. App'x": 999, "F.R.D.": 400, "B.R.": 700, "Fed. Cl.": 250, "T.C.": 200,
    "A.": 200, "A.2d": 999, "A.3d": 400, "P.": 300, "P.2d": 999, "P.3d": 600, "So.": 200, "So. 2d": 999, "So. 3d": 500,
    "N.E.": 200, "N.E.2d": 999, "N.E.3d": 300, "N.W.": 300, "N.W.2d": 999, "N.W.3d": 100,
    "S.E.": 200, "S.E.2d": 999, "S.W.": 300, "S.W.2d": 999, "S.W.3d": 800,
    "N.Y.2d": 100, "N.Y.3d": 60, "N.Y.S.": 300, "N.Y.S.2d": 999, "N.Y.S.3d": 300, "A.D.2d": 310, "A.D.3d": 300,
    "Cal. 2d": 80, "Cal. 3d": 60, "Cal. 4th": 70, "Cal. 5th": 30, "Cal. Rptr.": 300, "Cal. Rptr. 2d": 140,
    "Cal. Rptr. 3d": 320, "Cal. App. 2d": 280, "Cal. App. 3d": 240, "Cal. App. 4th": 250, "Cal. App. 5th": 120,
    "Ill. 2d": 250, "Ill. App. 2d": 140, "Ill. App. 3d": 999, "Wash. 2d": 210, "Wis. 2d": 450, "Ohio St. 2d": 80,
    "Ohio St. 3d": 170,
} | dict.fromkeys(_STATES.split(), 999)  # fmt: skip
"""Reporter as the Bluebook spaces it -> a volume above which there is none."""
_CODES = ("U.S.C.", "C.F.R.")
_SPACE = "[ \u00a0]"
_FOLLOWS = (
    rf"(?=[,;:)\]”\"]|\.(?!\d)|{_SPACE}*[(\[]|{_SPACE}*$|{_SPACE}+(?:at|and|or|but|cert|aff|rev|n)\b"
    rf"|{_SPACE}*[–-]{_SPACE}*\d)"
)


def _spelling(canonical: str) -> str:
    """A pattern of a reporter in which spaces between its parts may be missing or added; full stops may not."""
    parts = re.findall(r"[A-Za-z']+\.?|\d\w+", canonical)
    return f"{_SPACE}?".join(re.escape(part) for part in parts)


@lru_cache(maxsize=1)
def _patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    """(kind, pattern): longer reporters first, so F.2d is not read as F."""
    named = sorted(REPORTERS, key=lambda name: (-len(_spelling(name)), name))
    reporters = "|".join(_spelling(name) for name in named)
    codes = "|".join(_spelling(name) for name in _CODES)
    number = r"(?<![\w.,$-])([1-9]\d{0,3})"
    return (
        ("case", re.compile(rf"{number}({_SPACE}+)({reporters})({_SPACE}*)([1-9]\d{{0,4}}){_FOLLOWS}", re.MULTILINE)),
        ("code", re.compile(rf"{number}({_SPACE}+)({codes})({_SPACE}*)(§§?{_SPACE}*\d[\w.()-]*)", re.MULTILINE)),
    )


@lru_cache(maxsize=1)
def _canonical() -> dict[str, str]:
    return {re.sub(_SPACE, "", name): name for name in (*REPORTERS, *_CODES)}


@dataclass(frozen=True)
class Citation:
    """A citation: where it stands and how it is written in the canonical way."""

    start: int
    end: int
    text: str


def find_citations(text: str) -> Iterator[Citation]:
    """Case citations (410 U.S. 113) and sections of the federal codes (42 U.S.C. § 1983)."""
    found = []
    for kind, pattern in _patterns():
        for match in pattern.finditer(text):
            volume, _, written, _, place = match.groups()
            name = _canonical()[re.sub(_SPACE, "", written)]
            if kind == "case" and int(volume) > REPORTERS[name]:
                continue
            if kind == "code":
                place = re.sub(rf"^(§§?){_SPACE}*", r"\1 ", place)
            found.append(Citation(*match.span(), f"{volume} {name} {place}"))
    yield from sorted(found, key=lambda citation: citation.start)


@dataclass(frozen=True)
class Citations:
    """Spaces citations in one way; counts citations, and citations_normalised where a text changed."""

    name: str = "citations"

    def __call__(self, document: CuratedDocument) -> CuratedDocument:
        """The document with canonical citations."""
        text, parts, end, changed, number = document.text, [], 0, 0, 0
        for citation in find_citations(text):
            number += 1
            if text[citation.start : citation.end] != citation.text:
                parts += [text[end : citation.start], citation.text]
                end = citation.end
                changed += 1
        if not number:
            return document
        counts = with_counts(document, {"citations": number, "citations_normalised": changed})
        return replace(document, text="".join([*parts, text[end:]]), counts=counts)
