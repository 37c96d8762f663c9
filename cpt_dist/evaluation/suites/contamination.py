"""Which evaluation items occur in the training data: overlap of word n-grams with the token shards.

The rule is that of GPT-3 (Brown et al. 2020, arXiv 2005.14165, appendix C: 13 words in a row, fewer for short items,
text in lower case without punctuation). The shards are decoded piece by piece, so memory is that of one piece and of
the items, however large the data. A hash finds candidates; each is confirmed word by word.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from cpt_dist.corpus.ngrams import NgramIndex
from cpt_dist.data.shards import Source

PIECE_TOKENS = 1 << 18
_TOKENS_PER_WORD = 16
Decode = Callable[[Sequence[Sequence[int]]], list[str]]
"""Texts of many sequences of tokens."""


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
