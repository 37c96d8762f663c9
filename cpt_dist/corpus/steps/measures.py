"""The rules of Gopher, C4 and FineWeb, and of the format of code and tables, over one view of a document.

A measure is a number; a rule says between which bounds it should lie. Nothing is dropped here: a family of rules gives
a component between 0 and 1, and what misses a bound is counted. Rules are for what they were made for: those for prose
don't judge code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cpt_dist.corpus.steps.content import columns_of
from cpt_dist.corpus.steps.repetition import repetition_measures
from cpt_dist.corpus.steps.text_view import (
    DIGIT,
    LETTER,
    OTHER,
    PUNCTUATION,
    REPLACEMENT,
    SPACE,
    UPPER,
    OfWord,
    TextView,
)
from cpt_dist.curation_config import CODE, PROSE, TABLE

_BULLETS = ("•", "‣", "▪", "◦", "●", "○", "–", "- ", "* ")
_TERMINAL = (".", "!", "?", '"', "”", "…", ":", "。", "！", "？", "」")
_ELLIPSES = ("...", "…")
_SHORT_LINE_CHARACTERS = 30
_MIN_LINE_WORDS = 5
_BARE = OfWord(lambda word: word.strip(".,;:!?\"'()").lower())
_WEB_TEXTS = (
    "javascript",
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)


@dataclass(frozen=True)
class Rule:
    """A measure of a family should lie between `least` and `most` in documents of these contents."""

    family: str
    measure: str
    least: float | None
    most: float | None
    contents: tuple[str, ...] = (PROSE,)


_ALL = (PROSE, CODE, TABLE)
RULES = (
    # Gopher: Rae et al. 2021, arXiv 2112.11446, appendix A.1.1
    Rule("gopher", "words", 50, 100_000),
    Rule("gopher", "mean_word_length", 3, 10),
    Rule("gopher", "symbols_per_word", None, 0.1),
    Rule("gopher", "bullet_lines", None, 0.9),
    Rule("gopher", "ellipsis_lines", None, 0.3),
    Rule("gopher", "letter_words", 0.8, None),
    Rule("gopher", "stop_words", 2, None),
    # C4: Raffel et al. 2020, arXiv 1910.10683, section 2.2; what it does to lines is a share of lines here
    Rule("c4", "sentences", 3, None),
    Rule("c4", "terminal_lines", 0.5, None),
    Rule("c4", "long_lines", 0.5, None),
    Rule("c4", "web_lines", None, 0.05),
    Rule("c4", "lorem_ipsum", None, 0),
    Rule("c4", "curly_brackets", None, 0.05),
    # FineWeb: Penedo et al. 2024, arXiv 2406.17557, section 3.6
    Rule("fineweb", "terminal_lines", 0.12, None),
    Rule("fineweb", "duplicate_line_characters", None, 0.1),
    Rule("fineweb", "short_lines", None, 0.67),
    # Gopher, table A1; variety is ours
    Rule("repetition", "duplicate_lines", None, 0.3, (PROSE,)),
    Rule("repetition", "duplicate_line_characters", None, 0.2, (PROSE,)),
    Rule("repetition", "duplicate_paragraphs", None, 0.3, (PROSE,)),
    Rule("repetition", "duplicate_paragraph_characters", None, 0.2, _ALL),
    Rule("repetition", "top_2gram", None, 0.2, _ALL),
    Rule("repetition", "top_3gram", None, 0.18, _ALL),
    Rule("repetition", "top_4gram", None, 0.16, _ALL),
    Rule("repetition", "duplicate_5gram", None, 0.15),
    Rule("repetition", "duplicate_6gram", None, 0.14),
    Rule("repetition", "duplicate_7gram", None, 0.13),
    Rule("repetition", "duplicate_8gram", None, 0.12),
    Rule("repetition", "duplicate_9gram", None, 0.11),
    Rule("repetition", "duplicate_10gram", None, 0.1),
    Rule("repetition", "duplicate_10gram", None, 0.5, (CODE, TABLE)),
    Rule("repetition", "variety", 0.4, None),
    Rule("repetition", "variety", 0.1, None, (CODE, TABLE)),
    # Prose: ours. Code: the filters of the StarCoder data (Li et al. 2023, arXiv 2305.06161, section 3.1)
    Rule("format", "letters", 0.7, None),
    Rule("format", "digits", None, 0.2),
    Rule("format", "capitals", None, 0.4),
    Rule("format", "white_space", None, 0.5, (PROSE, CODE)),
    Rule("format", "damaged_characters", None, 0.001, _ALL),
    Rule("format", "mean_line_length", None, 100, (CODE,)),
    Rule("format", "longest_line", None, 1000, (CODE,)),
    Rule("format", "letters_and_digits", 0.25, None, (CODE,)),
    Rule("format", "agreeing_rows", 0.8, None, (TABLE,)),
)
"""Every rule with the bounds of its source."""
_RULES_OF = {
    content: [(rule.family, rule.measure, rule.least, rule.most) for rule in RULES if content in rule.contents]
    for content in _ALL
}
MEASURES = tuple(dict.fromkeys(rule.measure for rule in RULES))
"""Names of all measures, in the order of the rules."""


def _share(count: float, whole: float) -> float:
    return count / whole if whole else 0.0


def _line_measures(view: TextView, lowered: str) -> dict[str, float]:
    lines, text = view.lines, view.text
    num = len(lines)
    # What the text doesn't have, none of its lines has.
    web_texts = [one for one in _WEB_TEXTS if one in lowered]
    web = [any(one in line.lower() for one in web_texts) for line in lines if len(line) < 1000] if web_texts else []
    has_ellipsis = any(one in text for one in _ELLIPSES)
    return {
        "bullet_lines": _share(sum([line.startswith(_BULLETS) for line in lines]), num),
        "ellipsis_lines": _share(sum([line.endswith(_ELLIPSES) for line in lines]) if has_ellipsis else 0, num),
        "terminal_lines": _share(sum([line.endswith(_TERMINAL) for line in lines]), num),
        "long_lines": _share(sum([line.count(" ") >= _MIN_LINE_WORDS - 1 for line in lines]), num),
        "short_lines": _share(sum([len(line) <= _SHORT_LINE_CHARACTERS for line in lines]), num),
        "web_lines": _share(sum(web), num),
        "curly_brackets": _share(sum(["{" in line for line in lines]) if "{" in text else 0, num),
    }


def _prose_measures(view: TextView, stop_words: Sequence[str] | None) -> dict[str, float]:
    text, num_words = view.text, len(view.words)
    lowered = text.lower()
    symbols = text.count("#") + text.count("...") + text.count("…")
    measures = {
        "symbols_per_word": _share(symbols, num_words),
        "letter_words": _share(view.letter_words, num_words),
        "sentences": float(view.sentences),
        "lorem_ipsum": float("lorem ipsum" in lowered),
        **_line_measures(view, lowered),
    }
    if view.unspaced_share < 0.5:
        # Where a character is a word, neither its length nor lines that have enough of them mean anything.
        measures["mean_word_length"] = _share(float(view.word_lengths.sum()), num_words)
        if stop_words is not None:
            have = set(map(_BARE.__getitem__, view.counts))
            measures["stop_words"] = float(sum(word in have for word in stop_words))
    else:
        del measures["long_lines"], measures["short_lines"]
    return measures


def _format_measures(view: TextView, content: str) -> dict[str, float]:
    kinds = view.kinds
    letters = int(kinds[LETTER] + kinds[UPPER])
    visible = letters + int(kinds[DIGIT] + kinds[PUNCTUATION] + kinds[OTHER] + kinds[REPLACEMENT])
    measures = {
        "letters": _share(letters, visible),
        "digits": _share(int(kinds[DIGIT]), visible),
        "capitals": _share(int(kinds[UPPER]), letters),
        "letters_and_digits": _share(letters + int(kinds[DIGIT]), visible),
        "white_space": _share(int(kinds[SPACE]), len(view.text)),
        "damaged_characters": _share(int(kinds[REPLACEMENT]), visible),
    }
    if content == CODE:
        lengths = list(map(len, view.text.split("\n")))
        measures["mean_line_length"] = _share(sum(lengths), len(lengths))
        measures["longest_line"] = float(max(lengths))
    if content == TABLE:
        measures["agreeing_rows"] = columns_of(view.lines)[0]
    return measures


def measure(view: TextView, content: str, stop_words: Sequence[str] | None, window_words: int) -> dict[str, float]:
    """Every measure that means something for this content; `stop_words` is None for a language without any.

    Lengths are in characters, `words` and `sentences` are counts, all others shares between 0 and 1.
    """
    measures = {"words": float(len(view.words))}
    if content == PROSE:
        measures.update(_prose_measures(view, stop_words))
    measures.update(repetition_measures(view, window_words))
    measures.update(_format_measures(view, content))
    return measures


def held(value: float, least: float | None, most: float | None) -> float:
    """1 between the bounds, then falling in a straight line: to 0 at half of `least` and at twice `most`."""
    if least is not None and value < least:
        return max(0.0, 1 - (least - value) / abs(0.5 * least)) if least else 0.0
    if most is not None and value > most:
        return max(0.0, 1 - (value - most) / abs(most)) if most else 0.0
    return 1.0


def judge(
    measures: Mapping[str, float], content: str, bounds: Mapping[str, Sequence[float | None]]
) -> tuple[dict[str, float], list[str]]:
    """({family: mean of `held` over its rules that apply}, ["family.measure" of the rules that are missed]).

    `bounds` (measure -> [least, most]) take the place of the rules' own. A family without any rule that applies is
    left out: it is no 0 and no 1.
    """
    parts: dict[str, list[float]] = {}
    missed = []
    for family, measure, least, most in _RULES_OF[content]:
        value = measures.get(measure)
        if value is None:
            continue
        if measure in bounds:
            least, most = bounds[measure]
        part = 1.0
        if (least is not None and value < least) or (most is not None and value > most):
            part = held(value, least, most)
            missed.append(f"{family}.{measure}")
        parts.setdefault(family, []).append(part)
    return {family: sum(values) / len(values) for family, values in parts.items()}, missed
