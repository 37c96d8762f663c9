"""How many tokens of a source lie in documents of what length: counted by prepare, or from recorded bounds.

The manifest tells for lengths that are powers of two, as nearly all are; for others, and for a part of a source, the
bounds of documents are read. No token is.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from cpt_dist.data.packing import selected_documents
from cpt_dist.data.shards import Source

TOKENS_BY_LENGTH = "tokens_by_length"
"""Key of a shard's entry in the manifest: [k] is the tokens of its documents of 2**k to 2**(k+1) - 1 tokens."""


def tokens_by_length(lengths: np.ndarray) -> list[int]:
    """The entry of `TOKENS_BY_LENGTH` for documents of `lengths` (integers [n])."""
    lengths = lengths[lengths > 0]
    exponents = np.frexp(lengths.astype(np.float64))[1] - 1
    return np.bincount(exponents, weights=lengths.astype(np.float64)).astype(np.int64).tolist()


@lru_cache(maxsize=4096)
def share_below(source: Source, length: int) -> float:
    """Share of a source's tokens that lie in documents of fewer than `length` tokens; 0 for one without tokens.

    Raises UserError, by name, where the bounds of documents are needed and their shard can't be read.
    """
    below = _below_by_manifest(source, length)
    if below is None:
        below = sum(_below(source, shard, length) for shard in range(len(source.shard_tokens)))
    return below / max(1, source.num_tokens)


def _is_view(source: Source) -> bool:
    return bool(len(source.shard_tokens)) and source.documents(0) is not None


def _below_by_manifest(source: Source, length: int) -> int | None:
    """What the manifest says; None where it doesn't, as for a stratum, or a length that is no power of two."""
    if _is_view(source) or length & (length - 1):
        return None
    entries = source.manifest["shards"]
    if any(TOKENS_BY_LENGTH not in entry for entry in entries):
        return None
    return sum(sum(entry[TOKENS_BY_LENGTH][: length.bit_length() - 1]) for entry in entries)


def _below(source: Source, shard: int, length: int) -> int:
    starts, stops = selected_documents(source, shard).T
    lengths = stops - starts
    return int(lengths[lengths < length].sum())
