"""Removes what the page put into the text: lines that hold only the number of a page.

A number alone on a line may be anything, so lines go only if at least three of one kind count up through the document.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import pairwise

from cpt_dist.corpus.step import CuratedDocument
from cpt_dist.corpus.steps.repair import with_counts

_KINDS = (
    re.compile(r"[ \t]*page[ \t]+(\d{1,4})(?:[ \t]*(?:of|/)[ \t]*\d{1,4})?[ \t]*", re.IGNORECASE),
    re.compile(r"[ \t]*[-–—][ \t]*(\d{1,4})[ \t]*[-–—][ \t]*"),
    re.compile(r"[ \t]*[A-Z]-(\d{1,4})[ \t]*"),
    re.compile(r"[ \t]*(\d{1,4})[ \t]*"),
)
_BARE = _KINDS[-1]
_MIN_PAGES = 3
_MIN_LINES_A_PAGE = 8


def page_lines(lines: list[str]) -> set[int]:
    """Which lines are page numbers."""
    found: set[int] = set()
    for kind in _KINDS:
        matches = [(place, int(match[1])) for place, line in enumerate(lines) if (match := kind.fullmatch(line))]
        steps = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(matches)]
        counts_up = len(matches) >= _MIN_PAGES and all(number in (1, 2) for _, number in steps)
        # Numbers without a word may be a column or a numbered list; pages are further apart.
        if counts_up and (kind is not _BARE or all(distance >= _MIN_LINES_A_PAGE for distance, _ in steps)):
            found.update(place for place, _ in matches)
    return found


@dataclass(frozen=True)
class PageFurniture:
    """Removes page numbers that count up; count page_lines_removed."""

    name: str = "page_furniture"

    def __call__(self, document: CuratedDocument) -> CuratedDocument:
        """The document without them; every other line is as it was."""
        lines = document.text.split("\n")
        gone = page_lines(lines)
        if not gone:
            return document
        text = "\n".join(line for place, line in enumerate(lines) if place not in gone)
        return replace(document, text=text, counts=with_counts(document, {"page_lines_removed": len(gone)}))
