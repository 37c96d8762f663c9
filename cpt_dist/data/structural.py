"""Pieces of documents that are longer than a row, cut where their text has a seam.

Each piece ends at the last paragraph within the row's reach, else at the last line, else where the row is full, and it
fills half a row at least, so that no seam costs much context. Every piece is used; none is cut again to fill a gap.
Laying the pieces into rows is `best_fit.py`'s work, finding the seams that of `cuts.py`.
"""

from __future__ import annotations

from bisect import bisect_right

import numpy as np

STRUCTURAL_VERSION = 1
"""Raised by any change after which a shard's rows differ; part of the order's identity."""

LEAST_SHARE = 0.5
"""Of seq_len: a place that would leave a shorter piece is out of reach."""


def structural_pieces(
    documents: np.ndarray, seq_len: int, paragraphs: np.ndarray, lines: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """start, stop and document (int64 [pieces], rising) of the pieces of `documents`, token ranges int64 [n, 2].

    `paragraphs` and `lines` are the places at which a document may be cut, rising tokens of the shard. A document of
    at most `seq_len` tokens is one piece, an empty one none.
    """
    levels = (paragraphs.tolist(), lines.tolist())
    pieces: list[tuple[int, int, int]] = []
    lengths = documents[:, 1] - documents[:, 0]
    long = np.flatnonzero(lengths > seq_len)
    for number in long.tolist():
        begin, end = documents[number].tolist()
        while end - begin > seq_len:
            stop = _last_place(begin, seq_len, levels)
            pieces.append((begin, stop, number))
            begin = stop
        pieces.append((begin, end, number))
    whole = np.flatnonzero((lengths > 0) & (lengths <= seq_len))
    cut = np.array(pieces, dtype=np.int64).reshape(-1, 3)
    every = np.concatenate([np.column_stack([documents[whole], whole]), cut])
    start, stop, of = every[np.argsort(every[:, 0], kind="stable")].T
    return start, stop, of


def _last_place(begin: int, seq_len: int, levels: tuple[list[int], ...]) -> int:
    """Where the piece that begins at `begin` ends: at the last place in reach of the first level that has one."""
    for places in levels:
        at = bisect_right(places, begin + seq_len) - 1
        if at >= 0 and places[at] - begin >= LEAST_SHARE * seq_len:
            return places[at]
    return begin + seq_len
