"""Signatures by which nearly equal texts are found: MinHash over shingles of words, and the bands of a signature.

A shingle is so many words in a row, in lower case and without punctuation (`ngrams.words_of`). The share of equal
numbers in two signatures estimates the Jaccard similarity of the texts' sets of shingles (Broder 1997). rensa makes
the signatures, from hashes of shingles that are made here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cpt_dist.corpus.ngrams import WordHashes, words_of

SEED = 0x5EED
CANDIDATE_RECALL = 0.98
_MIX = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(29)


@dataclass(frozen=True)
class Bands:
    """How a signature is cut: `count` bands of `rows` numbers; documents that share a band are compared."""

    count: int
    rows: int

    def recall(self, similarity: float) -> float:
        """Probability that two documents of this similarity share a band: 1 - (1 - J^rows)^count."""
        return 1 - (1 - similarity**self.rows) ** self.count


def choose_bands(threshold: float, permutations: int) -> Bands:
    """The longest bands, which compare the fewest pairs, that still find CANDIDATE_RECALL of pairs at `threshold`."""
    for rows in range(min(permutations, 16), 1, -1):
        bands = Bands(permutations // rows, rows)
        if bands.recall(threshold) >= CANDIDATE_RECALL:
            return bands
    return Bands(permutations, 1)


class Signer:
    """Makes signatures, with one table of word hashes for all texts."""

    def __init__(self, shingle_words: int, permutations: int) -> None:
        self._size = shingle_words
        self._permutations = permutations
        self._hashes = WordHashes()

    def signatures(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(signatures u32 [texts, permutations], whether a text has any word [texts])."""
        from rensa import RMinHash

        shingles = [self._shingles(text) for text in texts]
        ends = np.cumsum([0, *map(len, shingles)], dtype=np.uint64)
        flat = np.concatenate([np.empty(0, np.uint64), *shingles])
        rows = RMinHash.digest_matrix_from_flat_token_hashes(flat, ends, self._permutations, SEED).to_rows()
        signatures = np.array(rows, dtype=np.uint32).reshape(len(texts), self._permutations)
        return signatures, np.array([len(one) > 0 for one in shingles], dtype=bool)

    def _shingles(self, text: str) -> np.ndarray:
        words = words_of(text)
        return self._hashes.in_a_row(words, min(self._size, len(words)) or 1)  # one that repeats changes no minimum


def band_hashes(signatures: np.ndarray, bands: Bands) -> np.ndarray:
    """One number for each band of each signature, u64 [bands, documents]."""
    cut = signatures[:, : bands.count * bands.rows].reshape(len(signatures), bands.count, bands.rows).astype(np.uint64)
    hashes = np.zeros(cut.shape[:2], np.uint64)
    for row in range(bands.rows):
        hashes = (hashes ^ cut[:, :, row]) * _MIX
        hashes ^= hashes >> _SHIFT
    return np.ascontiguousarray(hashes.T)


def similarities(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Estimated Jaccard similarity of a signature [permutations] and each of others [documents, permutations]."""
    return (others == one).mean(axis=1)
