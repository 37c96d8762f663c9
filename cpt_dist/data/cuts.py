"""Where a long document may be cut without tearing apart what belongs together: paragraphs first, lines second.

prepare finds these places in the text and records them as token offsets; `structural.py` cuts rows at them. Text
alone decides, so prose, Markdown and code are served by the same rules, and a place within a token is no place.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

MIN_APART_TOKENS = 32
"""Two recorded places, and a place and either end of its document, are at least so far apart: it bounds what recording
costs to one number of 4 bytes for 32 tokens."""

PARAGRAPHS, LINES = "paragraph_cuts", "line_cuts"
"""The sections of a shard, rising token offsets in it; u32, or u64 in a shard of 2**32 tokens and more."""

# One or more line ends with the blanks around them. Only ASCII: such a character is never spread over two tokens.
# The blanks before the first line end are looked for from there: a pattern that begins with them is tried everywhere.
_BLANKS = " \t\r\f\v"
_BREAK = re.compile(rf"\n[{_BLANKS}\n]*")
_HEADING = re.compile(r"#{1,6} ")


@dataclass
class Cuts:
    """Places of one document, or of all documents of a shard: rising token offsets, each the first of a piece."""

    paragraphs: list[int] = field(default_factory=list)
    """After a blank line or before a Markdown heading."""
    lines: list[int] = field(default_factory=list)
    """After any other line end."""

    def shifted(self, num_tokens: int) -> Cuts:
        """The same places counted from `num_tokens` further ahead."""
        return Cuts([num_tokens + one for one in self.paragraphs], [num_tokens + one for one in self.lines])


def _breaks(text: str) -> list[tuple[int, int, bool]]:
    """(first, one past the last character, whether a paragraph ends there) of each run of line ends, in order."""
    found = []
    below_heading = _HEADING.match(text) is not None
    for match in _BREAK.finditer(text):
        start = match.start()
        while start and text[start - 1] in _BLANKS:
            start -= 1
        before_heading = _HEADING.match(text, match.end()) is not None
        # A heading stays with what it is over, and consecutive lines with "# " (comments of a program) together.
        is_paragraph = not below_heading and (before_heading or match.group().count("\n") > 1)
        found.append((start, match.end(), is_paragraph))
        below_heading = before_heading
    return found


def find_cuts(text: str, ends: np.ndarray) -> Cuts:
    """The places of a document; token i of its text ends before character `ends[i]` (int64 [tokens], not falling).

    A place is the first token after a break, where one token ends within the break (or at its start) and the next
    begins there: the blanks themselves may lie on either side. Offsets count tokens of the text, without a BOS.
    Where two places are closer than `MIN_APART_TOKENS`, the paragraph's is kept, else the first.
    """
    breaks = _breaks(text)
    if not breaks:
        return Cuts()
    first, last, is_paragraph = (np.array(column) for column in zip(*breaks, strict=True))
    places = np.searchsorted(ends, last, side="right")
    whole = ends[np.maximum(places, 1) - 1] >= first
    usable = whole & (places >= MIN_APART_TOKENS) & (places <= len(ends) - MIN_APART_TOKENS)
    kept: list[tuple[int, bool]] = []
    for place, paragraph in zip(places[usable].tolist(), is_paragraph[usable].tolist(), strict=True):
        if kept and place - kept[-1][0] < MIN_APART_TOKENS:
            if kept[-1][1] or not paragraph:
                continue
            kept.pop()
        kept.append((place, paragraph))
    return Cuts(
        [place for place, paragraph in kept if paragraph], [place for place, paragraph in kept if not paragraph]
    )
