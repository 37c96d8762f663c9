"""How many tokens of a source are predicted when each of its rows is read once, whatever the packing.

Every token that has a predecessor in its document is a target exactly once an epoch, in instruction data only where it
lies in a span. So the number is arithmetic over recorded bounds; no token is read and no row is made.
"""

from __future__ import annotations

import numpy as np

from cpt_dist.data.packing import RowSource, selected_documents
from cpt_dist.data.shards import Source


def epoch_targets(source: RowSource) -> int:
    """Targets of one epoch over all rows of a source, or of a view of one.

    Of a whole source it is in the manifest (prepare keeps no document without tokens); of a stratum and of instruction
    data the bounds of documents and spans are read, which costs a few bytes a document.
    """
    shards = range(len(source.shard_tokens))
    if isinstance(source, Source) and shards and source.documents(0) is None and source.loss_spans(0) is None:
        return source.num_tokens - source.num_documents
    return sum(_shard_targets(source, shard) for shard in shards)


def _shard_targets(source: RowSource, shard: int) -> int:
    starts, stops = selected_documents(source, shard).T
    starts = np.minimum(starts + 1, stops)  # nothing predicts a document's first token
    spans = source.loss_spans(shard)
    if spans is None:
        return int((stops - starts).sum())
    return int((_inside(spans, stops) - _inside(spans, starts)).sum())


def _inside(spans: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Tokens before each of `places` (int64 [n]) that lie in one of the rising `spans` (uint64 [m, 2]): int64 [n]."""
    begins, ends = np.append(spans.astype(np.int64), [[np.iinfo(np.int64).max] * 2], axis=0).T
    before = np.cumsum(ends - begins) - (ends - begins)
    span = np.maximum(begins.searchsorted(places, side="right") - 1, 0)
    return before[span] + np.clip(places, begins[span], ends[span]) - begins[span]
