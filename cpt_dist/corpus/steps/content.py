"""Whether a document is prose, code or a table, which decides what later steps ask of it.

It is a vote of lines over the start of the text, not a parser: rules for prose destroy code (it has few sentences and
few letters), so what looks like code by half is judged as code. A source that knows better says so.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace

from cpt_dist.corpus.step import CuratedDocument
from cpt_dist.corpus.steps.code_language import code_language
from cpt_dist.curation_config import AUTO, CODE, PROSE, TABLE

CONTENT, CODE_LANGUAGE = "content", "code_language"
_READ_CHARACTERS = 20_000
_MIN_SHARE = 0.4
_CODE_LINE = re.compile(
    r"""^\s*(?:
        (?:def|class|async\ def|fn|func|function|impl|struct|enum|interface|namespace|template)\b.*[({:<]
        | (?:import|from|package|using|use)\ [\w.:{}*,\s/"'@-]+;?$
        | (?:public|private|protected|static|const|let|var|final)\ .*[;{(=,]$
        | (?:void|int|char|long|unsigned|bool|float|double)\ .*[;{(=,]$
        | (?:if|elif|for|while|switch|with|except|else|try|finally|do|case)\b.*[:{]$
        | (?:return|raise|yield|throw|break|continue|pass|goto|await|assert|del)\b(?:.*[;)\]'"]|\ [\w.\[\]]+|)$
        | (?:\#\ ?(?:include|define|if|ifdef|ifndef|endif|else|pragma|undef)\b) | \#! | @\w[\w.]*(?:\(.*\))?$
        | (?://|/\*|\*/|\*\ |--\ |;;)
        | (?:SELECT|INSERT|UPDATE|CREATE|ALTER|DROP|DELETE)\ .*
        | [\w.\[\]'"*>&:-]+\s*(?:=|\+=|-=|:=|\|=)\s*\S+
        | [\w.>:-]+\(.*\)?[;,{:]?$
        | .*[;{}]$ | [)\]}]+[;,]?$
        | ['"\w]+\s*:\s*.*,$
    )""",
    re.VERBOSE,
)
_SEPARATORS = "\t|,;"
_MIN_COLUMNS = 3
_MIN_ROWS = 3


def columns_of(lines: list[str]) -> tuple[float, int]:
    """(share of lines with the commonest number of columns, that number) for the separator that fits best.

    A line without at least two separators counts as none of a table.
    """
    best = (0.0, 1)
    for separator in _SEPARATORS:
        numbers = [line.count(separator) + 1 for line in lines]
        if max(numbers, default=1) < _MIN_COLUMNS:
            continue
        counts = Counter(numbers)
        columns, rows = max(
            ((number, rows) for number, rows in counts.items() if number >= _MIN_COLUMNS),
            key=lambda pair: (pair[1], -pair[0]),
            default=(1, 0),
        )
        best = max(best, (rows / len(lines) if lines else 0.0, columns))
    return best


def content_of(text: str) -> str:
    """prose, code or table, from the first 20,000 characters."""
    lines = [line for line in text[:_READ_CHARACTERS].split("\n") if line.strip()]
    if not lines:
        return PROSE
    code = sum(1 for line in lines if _CODE_LINE.match(line)) / len(lines)
    share, columns = columns_of(lines)
    if len(lines) >= _MIN_ROWS and share >= 0.7 and columns >= _MIN_COLUMNS and share >= code:
        return TABLE
    return CODE if code >= _MIN_SHARE else PROSE


@dataclass(frozen=True)
class Content:
    """Labels a document with what it is: `content`, or what `content_of` says if that is auto; and code's language."""

    content: str = AUTO
    name: str = "content"

    def __call__(self, document: CuratedDocument) -> CuratedDocument:
        """The document with the label content, and code with the label code_language."""
        content = content_of(document.text) if self.content == AUTO else self.content
        labels = {**document.labels, CONTENT: content}
        if content == CODE:
            labels[CODE_LANGUAGE] = code_language(document.text)
        return replace(document, labels=labels)
