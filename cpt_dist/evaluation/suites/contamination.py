"""Which evaluation items occur in the training data: overlap of word n-grams with the token shards.

The rule is that of GPT-3 (Brown et al. 2020, arXiv 2005.14165, appendix C: 13 words in a row, fewer for short items,
text in lower case without punctuation). The shards are decoded piece by piece, so memory is that of one piece and of
the items, however large the data. A hash finds candidates; each is confirmed word by word.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import xxhash

from cpt_dist.data.shards import Source

FEWEST_WORDS = 8
"""Items with fewer words are not searched for: they would be found by chance."""
TEMPLATE_ITEMS, TEMPLATE_SHARE = 10, 0.1
"""An n-gram in at least so many items and more than this share of them is the wording of the task, not of an item."""
PIECE_TOKENS = 1 << 18
_TOKENS_PER_WORD = 16
_CACHED_WORDS = 1 << 20
_BASE = np.uint64(0x9E3779B97F4A7C15)
_CJK = "\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")
Decode = Callable[[Sequence[Sequence[int]]], list[str]]
"""Texts of many sequences of tokens."""


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation; each CJK character is one."""
    return _WORD.findall(text.casefold())


@dataclass(frozen=True)
class Evidence:
    """Where an item was first found."""

    source: str
    document: str
    """Id of the training document, as in its shard."""
    text: str
    """The words found."""


@dataclass
class Found:
    """What a search found; items are numbered as the texts of the index."""

    items: dict[int, Evidence] = field(default_factory=dict)
    documents: int = 0
    tokens: int = 0


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
        self._word_hashes: dict[str, int] = {}
        for suite, text in zip(suites, texts, strict=True):
            words = words_of(text)
            size = min(n, len(words))
            enough = size >= min(FEWEST_WORDS, n)
            mine = {tuple(words[i : i + size]) for i in range(len(words) - size + 1)} if enough else set()
            grams.append(mine)
            if enough:
                hashes.setdefault(size, []).append(self._hashes(words, size))
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

    def _hashes(self, words: list[str], size: int) -> np.ndarray:
        """Hash of every `size` words in a row, uint64 [words - size + 1] (polynomial, modulo 2^64)."""
        if len(self._word_hashes) > _CACHED_WORDS:
            self._word_hashes.clear()
        cache = self._word_hashes
        for word in words:
            if word not in cache:
                cache[word] = xxhash.xxh3_64_intdigest(word.encode())
        values = np.fromiter((cache[word] for word in words), dtype=np.uint64, count=len(words))
        count = len(words) - size + 1
        total = np.zeros(max(count, 0), dtype=np.uint64)
        for offset in range(size if count > 0 else 0):
            total = total * _BASE + values[offset : offset + count]
        return total

    def items_in(self, text: str) -> Iterator[tuple[int, str]]:
        """(item, words found) for every n-gram of an item that occurs in `text`."""
        words = words_of(text)
        for size, known in self._sorted.items():
            hashes = self._hashes(words, size)
            places = np.searchsorted(known, hashes).clip(max=len(known) - 1)
            for start in np.flatnonzero(known[places] == hashes):
                gram = tuple(words[start : start + size])
                for item in self._items.get(gram, ()):
                    yield item, " ".join(gram)


def search(
    sources: Iterable[Source],
    index: NgramIndex,
    decode: Decode,
    n: int,
    report: Callable[[str], None] = lambda line: None,
) -> Found:
    """Look the items of `index` up in all training documents of `sources`, whose tokens `decode` turns into text.

    A document longer than a piece is read in pieces that overlap by as many tokens as n words may have (16 a word).
    Raises UserError for a damaged shard.
    """
    found = Found()
    for source in sources:
        for shard in range(len(source.shard_tokens)):
            report(f"searching {source.name} for the items, shard {shard + 1} of {len(source.shard_tokens)}")
            offsets = source.doc_offsets(shard).astype(np.int64)
            ids = source.doc_ids(shard)
            found.documents += len(ids)
            found.tokens += int(offsets[-1])
            for batch in _batches(offsets, n * _TOKENS_PER_WORD):
                texts = decode([source.tokens(shard, start, stop).tolist() for _, start, stop in batch])
                for (document, _, _), text in zip(batch, texts, strict=True):
                    for item, words in index.items_in(text):
                        if item not in found.items:
                            found.items[item] = Evidence(source.name, bytes(ids[document]).hex(), words)
    return found


def _batches(offsets: np.ndarray, overlap: int) -> Iterator[list[tuple[int, int, int]]]:
    """(document, first token, last token + 1) of pieces, in groups of about `PIECE_TOKENS` tokens."""
    batch: list[tuple[int, int, int]] = []
    size = 0
    for document, (start, stop) in enumerate(itertools.pairwise(offsets.tolist())):
        for first in range(start, max(start + 1, stop - overlap), max(1, PIECE_TOKENS - overlap)):
            last = min(stop, first + PIECE_TOKENS)
            batch.append((document, first, last))
            size += last - first
            if size >= PIECE_TOKENS:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch
