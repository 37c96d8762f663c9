"""The steps before a document has its id: repair of its encoding, the canonical form, the id itself.

What was repaired is counted, never what the text says changed: quotes, ligatures, widths, HTML and line ends stay.
The order matters: an id of text that is changed afterwards finds no duplicate.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from cpt_dist.corpus.normalise import document_id, normalise
from cpt_dist.corpus.step import CuratedDocument, Dropped

if TYPE_CHECKING:
    from ftfy import TextFixerConfig

EMPTY = "empty"


def with_counts(document: CuratedDocument, added: dict[str, int]) -> dict[str, int]:
    """The document's counts with those of `added` that aren't 0 on top."""
    counts = dict(document.counts)
    for name, count in added.items():
        if count:
            counts[name] = counts.get(name, 0) + count
    return counts


@lru_cache(maxsize=1)
def _encoding_only() -> TextFixerConfig:
    from ftfy import TextFixerConfig

    return TextFixerConfig(
        unescape_html=False,
        remove_terminal_escapes=False,
        fix_latin_ligatures=False,
        fix_character_width=False,
        uncurl_quotes=False,
        fix_line_breaks=False,
        fix_surrogates=False,
        remove_control_chars=False,
        normalization=None,
        explain=False,
    )


@dataclass(frozen=True)
class Repair:
    """Undoes decoding with the wrong encoding, line by line (ftfy: Speer 2019).

    Only lines that aren't ASCII and that ftfy's own test finds unlikely are touched; the rest costs nothing.
    """

    name: str = "repair"

    def __call__(self, document: CuratedDocument) -> CuratedDocument:
        """The document with such lines repaired; count mojibake_lines."""
        if document.text.isascii():
            return document
        from ftfy import fix_text
        from ftfy.badness import is_bad

        lines = document.text.split("\n")
        repaired = 0
        for place, line in enumerate(lines):
            if not line.isascii() and is_bad(line):
                fixed = fix_text(line, _encoding_only())
                repaired += fixed != line
                lines[place] = fixed
        if not repaired:
            return document
        return replace(document, text="\n".join(lines), counts=with_counts(document, {"mojibake_lines": repaired}))


@dataclass(frozen=True)
class Normalise:
    """The canonical form of `normalise.py`, or of line ends alone; a text of white space alone is dropped as empty."""

    unicode: bool = True
    """Whether other characters than line ends have a canonical form too; those of a program don't."""
    name: str = "normalise"

    def __call__(self, document: CuratedDocument) -> CuratedDocument | Dropped:
        """The document in canonical form; count normalised where that changed it."""
        given = document.text
        text = normalise(given) if self.unicode else given.replace("\r\n", "\n").replace("\r", "\n")
        if not text.strip():
            return Dropped(EMPTY, f"{len(document.text)} characters, none that shows")
        if text == document.text:
            return document
        return replace(document, text=text, counts=with_counts(document, {"normalised": 1}))


@dataclass(frozen=True)
class Identify:
    """Gives a document the id that it keeps: the hash of its text, which is normalised by now."""

    name: str = "identify"

    def __call__(self, document: CuratedDocument) -> CuratedDocument:
        """The document with its id."""
        return replace(document, id=document_id(document.text))
