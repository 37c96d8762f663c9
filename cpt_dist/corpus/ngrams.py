"""Words of a text, and n-grams of words that are looked for in other texts.

What a word is decides what counts as equal, for the search for evaluation items as for near-duplicates. A hash finds
candidates; each is confirmed word by word. The rule for items is that of GPT-3 (Brown et al. 2020, arXiv 2005.14165,
appendix C: 13 words in a row, fewer for short items, text in lower case without punctuation).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import xxhash

FEWEST_WORDS = 8
"""Items with fewer words are not searched for: they would be found by chance."""
TEMPLATE_ITEMS, TEMPLATE_SHARE = 10, 0.1
"""An n-gram in at least so many items and more than this share of them is the wording of the task, not of an item."""
_CACHED_WORDS = 1 << 20
_BASE = np.uint64(0x9E3779B97F4A7C15)
_CJK = "\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")
_ASCII_WORDS = bytes(ord(chr(code).lower()) if _WORD.match(chr(code)) else 0x20 for code in range(0x80)) + bytes(0x80)


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation; each CJK character is one."""
    if text.isascii():  # a table does what the pattern does, in a tenth of the time
        return text.encode("ascii").translate(_ASCII_WORDS).decode("ascii").split()
    return _WORD.findall(text.casefold())


def words_and_places(text: str) -> tuple[list[str], list[tuple[int, int]]]:
    """The words of a text, and the characters of it that each one stands at.

    Words are folded one by one, as a text in lower case may have another length ('İ' becomes two characters).
    """
    words, places = [], []
    for match in _WORD.finditer(text):
        for word in words_of(match.group()):
            words.append(word)
            places.append(match.span())
    return words, places


class WordHashes:
    """Hashes of words, and of several in a row."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def in_a_row(self, words: Sequence[str], size: int) -> np.ndarray:
        """Hash of every `size` words in a row, uint64 [words - size + 1] (polynomial, modulo 2^64)."""
        if len(self._known) > _CACHED_WORDS:
            self._known.clear()
        known = self._known
        for word in set(words).difference(known):
            known[word] = xxhash.xxh3_64_intdigest(word.encode())
        values = np.fromiter(map(known.__getitem__, words), dtype=np.uint64, count=len(words))
        count = len(words) - size + 1
        total = np.zeros(max(count, 0), dtype=np.uint64)
        for offset in range(size if count > 0 else 0):
            total *= _BASE
            total += values[offset : offset + count]
        return total


class NgramIndex:
    """The n-grams of evaluation items, to be looked up in training text."""

    def __init__(self, texts: Sequence[str], n: int, suites: Sequence[str] = ()) -> None:
        """`texts` are the items' questions with their answers; n words in a row make an item found.

        `suites` says which suite each item belongs to (default: all to one); wording is what a suite's items share.
        An item of fewer words, but at least `FEWEST_WORDS` (or n, if that is less), is found by all of them in a row.
        """
        suites = suites or [""] * len(texts)
        sizes = Counter(suites)
        self.unchecked: list[int] = []
        """Items that are too short to be searched for, or consist of the task's wording only."""
        shared: Counter[tuple[str, tuple[str, ...]]] = Counter()
        grams: list[set[tuple[str, ...]]] = []
        hashes: dict[int, list[np.ndarray]] = {}
        self._hashes = WordHashes()
        for suite, text in zip(suites, texts, strict=True):
            words = words_of(text)
            size = min(n, len(words))
            enough = size >= min(FEWEST_WORDS, n)
            mine = {tuple(words[i : i + size]) for i in range(len(words) - size + 1)} if enough else set()
            grams.append(mine)
            if enough:
                hashes.setdefault(size, []).append(self._hashes.in_a_row(words, size))
            shared.update((suite, gram) for gram in mine)
        most = {suite: max(TEMPLATE_ITEMS - 1, TEMPLATE_SHARE * size) for suite, size in sizes.items()}
        self._items: dict[tuple[str, ...], list[int]] = {}
        for item, (suite, mine) in enumerate(zip(suites, grams, strict=True)):
            own = [gram for gram in mine if shared[suite, gram] <= most[suite]]
            if not own:
                self.unchecked.append(item)
            for gram in own:
                self._items.setdefault(gram, []).append(item)
        self._sorted = {size: np.unique(np.concatenate(parts)) for size, parts in sorted(hashes.items())}

    def items_in(self, text: str) -> Iterator[tuple[int, str]]:
        """(item, words found) for every n-gram of an item that occurs in `text`."""
        for _, _, item, gram in self._hits(words_of(text)):
            yield item, gram

    def places_in(self, text: str) -> Iterator[tuple[int, int, int, str]]:
        """(first character, character after the last, item, words found) of each n-gram that `items_in` finds."""
        words, places = words_and_places(text)
        for first, last, item, gram in self._hits(words):
            yield places[first][0], places[last][1], item, gram

    def _hits(self, words: list[str]) -> Iterator[tuple[int, int, int, str]]:
        """(first word, last word, item, words) of each n-gram of an item that occurs in a row of words."""
        for size, known in self._sorted.items():
            hashes = self._hashes.in_a_row(words, size)
            places = np.searchsorted(known, hashes).clip(max=len(known) - 1)
            for start in np.flatnonzero(known[places] == hashes).tolist():
                gram = tuple(words[start : start + size])
                for item in self._items.get(gram, ()):
                    yield start, start + size - 1, item, " ".join(gram)
