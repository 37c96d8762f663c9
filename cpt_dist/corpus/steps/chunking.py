"""Cuts over-long documents where they have a seam: at headings, else paragraphs, lines, sentences, words, characters.

Nothing is lost: every piece is a document, and their texts joined are the whole text, character by character. A piece
says which document it is of and where it stood there.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

import xxhash

from cpt_dist.corpus.step import CuratedDocument
from cpt_dist.corpus.steps.content import CONTENT
from cpt_dist.curation_config import CODE, PROSE, ChunkingConfig

_HEADING = re.compile(
    r"^(?=\#{1,6}\ \S"  # Markdown
    r"|(?:chapter|section|article|part|title|appendix|schedule|volume|book)\ +(?:[0-9]+|[ivxlc]+|[a-z])\b"
    r"|(?:§+\ ?)?[0-9]+(?:\.[0-9]+)*\.?\ +[^\W\d_][^\n]{0,80}$"  # 2.1 Scope
    r"|[^\n]{1,80}\n(?:={3,}|-{3,}|~{3,})$)",  # underlined
    re.MULTILINE | re.IGNORECASE | re.VERBOSE,
)
_TOP_LEVEL = re.compile(r"(?<=\n\n)(?=[^\s)\]}])")
_PARAGRAPH = re.compile(r"(?<=\n)\n+")
_LINE = re.compile(r"\n")
_SENTENCE = re.compile(r"(?<=[.!?])[\"'”’»)\]]*\s+(?=[\"'“‘«(\[]?[^\W_a-zß-ÿ])|(?<=[。！？])")
_WORD = re.compile(r"\s+")
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\[\"'“])(?:[^\W\d_]|(?:[^\W\d_]\.)+[^\W\d_]|vs|no|nos|mr|mrs|ms|dr|prof|st|inc|co|corp|ltd|art|sec|fig|figs|al"
    r"|jr|sr|id|ibid|op|cit|pp|cir|app|supp|ct|rev|stat|eds?|vol|ch|cl|para|ref|approx|bzw|usw|nr|abs|ca|dist|div|dept)\.$",
    re.IGNORECASE,
)
_ABBREVIATION_CHARACTERS = 16
_JOINED = "\u200d\ufe0e\ufe0f"
_LONGEST_CLUSTER = 32
LEVELS = {
    PROSE: (_HEADING, _PARAGRAPH, _LINE),
    CODE: (_TOP_LEVEL, _PARAGRAPH, _LINE),
}
"""Seams that are looked for in the whole text, best first; sentences and words follow where none of them is near."""


def _ends_a_sentence(text: str, stop: int) -> bool:
    """Whether the stop before `stop` isn't that of an abbreviation, as in 'U.S. v. Smith'."""
    return not _ABBREVIATION.search(text[max(stop - _ABBREVIATION_CHARACTERS, 0) : stop])


def _last_within(text: str, low: int, high: int) -> int | None:
    """The last end of a sentence, else of a word, from `low` to `high`."""
    window = text[low - 1 : high]
    sentences = [
        low - 1 + match.end()
        for match in _SENTENCE.finditer(window)
        if _ends_a_sentence(text, low - 1 + match.start()) and low <= low - 1 + match.end()
    ]
    if sentences:
        return sentences[-1]
    words = [low - 1 + match.end() for match in _WORD.finditer(window) if low - 1 + match.end() >= low]
    return words[-1] if words else None


def _between_characters(text: str, low: int, high: int) -> int:
    """`high`, or a little less where that would part a letter from its accent or a joined picture."""
    for cut in range(high, max(low, high - _LONGEST_CLUSTER), -1):
        is_joined = unicodedata.combining(text[cut]) or text[cut] in _JOINED or text[cut - 1] == "\u200d"
        if not is_joined:
            return cut
    return high


def cut_points(text: str, content: str, max_characters: int, min_fill: float) -> list[int]:
    """Where to cut a text such that no piece has more than `max_characters`; empty where it is short enough.

    The best seam within the last (1 - min_fill) of a piece counts: of the best kind, and of these the last one.
    """
    if len(text) <= max_characters:
        return []
    seams = [[match.end() for match in pattern.finditer(text)] for pattern in LEVELS.get(content, LEVELS[PROSE])]
    cuts, start = [], 0
    while len(text) - start > max_characters:
        low, high = start + max(int(min_fill * max_characters), 1), start + max_characters
        cut = None
        for places in seams:
            found = bisect_right(places, high) - 1
            if found >= 0 and places[found] >= low:
                cut = places[found]
                break
        if cut is None:
            cut = _last_within(text, low, high) or _between_characters(text, start + 1, high)
        cuts.append(cut)
        start = cut
    return cuts


def chunk_id(parent: bytes, offset: int) -> bytes:
    """16 bytes: xxh3-128 of the whole document's id and the place; equal texts of two documents stay two chunks."""
    return xxhash.xxh3_128_digest(parent + offset.to_bytes(8, "big"))


@dataclass(frozen=True)
class Chunk:
    """A splitter: a document of at most `max_characters` stays as it is, a longer one becomes several.

    What is chosen by the id of a document, such as what is held out, goes by `parent` for a chunk, so that no document
    is on both sides.
    """

    settings: ChunkingConfig
    name: str = "chunking"

    def __call__(self, document: CuratedDocument) -> Sequence[CuratedDocument]:
        """The pieces in order; the first one has the document's counts."""
        text, settings = document.text, self.settings
        content = document.labels.get(CONTENT, PROSE)
        cuts = cut_points(text, content, settings.max_characters, settings.min_fill)
        if not cuts:
            return [document]
        parent = document.parent or document.id
        pieces = []
        for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
            offset = document.offset + start
            counts = {**document.counts, "cut_documents": 1} if start == 0 else {}
            pieces.append(
                replace(
                    document,
                    id=chunk_id(parent, offset),
                    text=text[start:end],
                    parent=parent,
                    offset=offset,
                    counts=counts,
                )
            )
        return pieces
