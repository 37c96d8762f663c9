"""What scores read of a document: its words, lines and kinds of characters, each worked out once.

Words are what stands between white space, as in the papers whose rules are measured (a tokenizer that splits off
punctuation makes Gopher's rules drop nearly all technical text); in scripts without spaces each character is a word.
Counting is done in numpy over hashes of words and code points.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from functools import cached_property, lru_cache
from itertools import compress
from typing import Any

import numpy as np
import xxhash

_UNSPACED_RANGES = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_UNSPACED = re.compile(f"[{_UNSPACED_RANGES}]")
_WORD = re.compile(f"[{_UNSPACED_RANGES}]|[^\\s{_UNSPACED_RANGES}]+")
_PARAGRAPH_END = re.compile(r"\n[ \t]*\n\s*")
_SENTENCE_END = re.compile(r"[.!?。！？…][\"'”’»)\]]*(?=\s|$)|[。！？]")
_LETTER = re.compile(r"[^\W\d_]")
OTHER, LETTER, UPPER, DIGIT, SPACE, PUNCTUATION, REPLACEMENT = range(7)
_KINDS = 7
_BMP, _ASCII = 1 << 16, 1 << 7
_MOST_REMEMBERED, _LONGEST_REMEMBERED = 1 << 17, 64
"""Words that `OfWord` keeps, and the characters of the longest."""


class OfWord(dict[str, Any]):
    """What a function of one word gives, remembered for the words of all texts of a process: most occur in many."""

    def __init__(self, function: Callable[[str], Any]) -> None:
        super().__init__()
        self._function = function

    def __missing__(self, word: str) -> Any:
        value = self._function(word)
        if len(word) <= _LONGEST_REMEMBERED:
            if len(self) >= _MOST_REMEMBERED:
                self.clear()
            self[word] = value
        return value


@lru_cache(maxsize=1)
def _kinds() -> np.ndarray:
    """Kind of every code point of the Basic Multilingual Plane; those above it have the kind at its end."""
    table = np.zeros(_BMP + 1, dtype=np.uint8)
    for code in range(_BMP):
        category = unicodedata.category(chr(code))
        if category == "Lu":
            table[code] = UPPER
        elif category[0] in "LM":
            table[code] = LETTER
        elif category == "Nd":
            table[code] = DIGIT
        elif category[0] == "Z" or chr(code) in "\t\n":
            table[code] = SPACE
        elif category[0] == "P":
            table[code] = PUNCTUATION
    table[0xFFFD] = REPLACEMENT
    return table


class TextView:
    """A document's text, taken apart on first use."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def words(self) -> list[str]:
        """Everything between white space; characters of scripts without spaces one by one."""
        return self.text.split() if not self.has_unspaced else _WORD.findall(self.text)

    @cached_property
    def has_unspaced(self) -> bool:
        """Whether there is a character of a script that has no spaces between words."""
        return not self.text.isascii() and _UNSPACED.search(self.text) is not None

    @cached_property
    def unspaced_share(self) -> float:
        """Share of words that are one character of a script without spaces."""
        if not self.has_unspaced:
            return 0.0
        return sum(count for word, count in self.counts.items() if _UNSPACED.match(word)) / len(self.words)

    @cached_property
    def counts(self) -> Counter[str]:
        """Word -> how often it occurs, in the order of first occurrence."""
        return Counter(self.words)

    @cached_property
    def word_numbers(self) -> np.ndarray:
        """[words] i64: which of the different words each is, counted from 0 in the order of first occurrence."""
        numbers = dict(zip(self.counts, range(len(self.counts)), strict=True))
        return np.fromiter(map(numbers.__getitem__, self.words), dtype=np.int64, count=len(self.words))

    @cached_property
    def term_hashes(self) -> np.ndarray:
        """[words] u64: xxh3 of each word in lower case, without punctuation at its ends."""
        different = np.fromiter(map(_TERM_HASHES.__getitem__, self.counts), dtype=np.uint64, count=len(self.counts))
        return different[self.word_numbers]

    @cached_property
    def word_lengths(self) -> np.ndarray:
        """[words] i64: characters of each word."""
        return np.fromiter(map(len, self.words), dtype=np.int64, count=len(self.words))

    @cached_property
    def letter_words(self) -> int:
        """Words with at least one letter."""
        return sum(compress(self.counts.values(), map(_HAS_LETTER.__getitem__, self.counts)))

    @cached_property
    def lines(self) -> list[str]:
        """Lines that aren't blank, without white space at their ends."""
        return [stripped for line in self.text.split("\n") if (stripped := line.strip())]

    @cached_property
    def paragraphs(self) -> list[str]:
        """What stands between blank lines, without white space at its ends."""
        return [stripped for part in _PARAGRAPH_END.split(self.text) if (stripped := part.strip())]

    @cached_property
    def sentences(self) -> int:
        """Ends of sentences."""
        return len(_SENTENCE_END.findall(self.text))

    @cached_property
    def kinds(self) -> np.ndarray:
        """[7] how many characters are of each kind (OTHER, LETTER, …)."""
        if self.text.isascii():
            numbers = np.bincount(np.frombuffer(self.data, dtype=np.uint8), minlength=_ASCII)
            return np.bincount(_kinds()[:_ASCII], weights=numbers, minlength=_KINDS).astype(np.int64)
        codes = np.frombuffer(self.text.encode("utf-32-le"), dtype=np.uint32)
        if codes.max() >= _BMP:
            # Above the plane stand rare Chinese characters (from 0x20000 on) and pictures.
            codes = np.where(codes >= _BMP, np.where(codes >= 0x20000, ord("一"), _BMP), codes)
        return np.bincount(_kinds()[codes], minlength=_KINDS)

    @cached_property
    def data(self) -> bytes:
        """The text in UTF-8."""
        return self.text.encode("utf-8")


EXCERPT_CHARACTERS, EXCERPT_PIECES = 2_000_000, 8


def excerpt(text: str) -> str:
    """A text of at most 2,000,000 characters as it is; of a longer one 8 pieces, evenly spread, so many in all.

    Words of 100 MB would take gigabytes. Pieces are apart by a blank line.
    """
    if len(text) <= EXCERPT_CHARACTERS:
        return text
    size = EXCERPT_CHARACTERS // EXCERPT_PIECES
    starts = [piece * (len(text) - size) // (EXCERPT_PIECES - 1) for piece in range(EXCERPT_PIECES)]
    return "\n\n".join(text[start : start + size] for start in starts)


_ENDS = " \t\n.,;:!?\"'`()[]{}<>“”‘’«»…*_—–-/\\|"


def term(word: str) -> str:
    """A word as vocabularies and keywords have it: in lower case, without punctuation at its ends."""
    return word.strip(_ENDS).lower() or word


_TERM_HASHES = OfWord(lambda word: xxhash.xxh3_64_intdigest(term(word).encode()))
_HAS_LETTER = OfWord(lambda word: _LETTER.search(word) is not None)


MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
"""Of the polynomial that hashes words in a row."""


def ngrams(hashes: np.ndarray, shorter: np.ndarray, n: int) -> np.ndarray:
    """[words - n + 1] hashes of n words in a row, from those of one word and of n - 1 words in a row."""
    return shorter[:-1] * MULTIPLIER + hashes[n - 1 :]


def phrase_hash(phrase: str) -> tuple[int, int]:
    """(number of words, hash as `ngrams` of `term_hashes` makes it) of a keyword."""
    words = [term(word) for word in phrase.split()]
    value = 0
    for word in words:
        value = (value * int(MULTIPLIER) + xxhash.xxh3_64_intdigest(word.encode())) % (1 << 64)
    return len(words), value
