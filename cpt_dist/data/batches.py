"""Micro-batches: rows read from shards and laid end to end, without padding, with the bounds of their documents.

The label of a token is the token after it in the same document, also where that one is in the next row, and there is
none for a document's last token; `batch.py` makes labels from what is found here. Nothing is drawn or decided here;
`order.py` says which rows, `loader.py` which rank takes them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from cpt_dist.data.batch import Batch
from cpt_dist.data.masking import TakenDown, place_runs, rows_left
from cpt_dist.data.packing import PackPlan, Row, RowSource
from cpt_dist.data.row_window import NO_RUNS, RowWindow

_FILLER_TOKENS = 2


def build_batch(
    sources: Sequence[RowSource],
    plans: Sequence[PackPlan],
    source: np.ndarray,
    row: np.ndarray,
    sample_ids: np.ndarray,
    taken: TakenDown | None = None,
    positions: str = "restart",
) -> Batch:
    """The micro-batch of the rows `row` of `source` (int64 [rows], indices into `sources` and `plans`).

    Each span is read with the one token after it, which is the label of its last token. Pieces of documents that are
    `taken` down at their sample are left out. `positions` is one of `config.POSITIONS`. Raises ValueError for no rows,
    and UserError for a damaged block of a shard.
    """
    if not len(row):
        raise ValueError("a batch needs a row; a rank without one takes filler_batch()")
    pairs = zip(source.tolist(), row.tolist(), strict=True)
    rows = [plans[source_index].row(row_index) for source_index, row_index in pairs]
    # Copies: what a batch holds must not change with the caller's arrays.
    return batch_of_rows(sources, np.array(source, dtype=np.int64), rows, np.array(sample_ids), taken, positions)


def batch_of_rows(
    sources: Sequence[RowSource],
    source: np.ndarray,
    rows: Sequence[Row],
    sample_ids: np.ndarray,
    taken: TakenDown | None = None,
    positions: str = "restart",
) -> Batch:
    """`build_batch` of rows that were looked up in their plans."""
    if not taken:
        return RowWindow(sources, source, rows, sample_ids).batch(0, len(rows), positions)
    left = rows_left([sources[number] for number in source.tolist()], rows, sample_ids.tolist(), taken)
    skipped = np.stack([left.pieces, left.tokens])
    if not any(where.spans for where in left.rows):
        return filler_batch(sample_ids, source, skipped)
    runs = place_runs(left) if positions == "continue" else None
    return RowWindow(sources, source, left.rows, sample_ids).batch(0, len(rows), positions, skipped, runs)


def filler_batch(
    sample_ids: np.ndarray | None = None, row_sources: np.ndarray | None = None, skipped: np.ndarray | None = None
) -> Batch:
    """A batch of no targets, for a rank that has no tokens left and must still enter the collectives.

    Without arguments it has no rows; else those of `sample_ids`, of which everything was `skipped` (int64 [2, rows]:
    pieces and tokens).
    """
    none = np.empty(0, dtype=np.int64)
    sample_ids, row_sources = (none if given is None else given for given in (sample_ids, row_sources))
    num_rows = len(sample_ids)
    return _batch(
        np.zeros(_FILLER_TOKENS, dtype=np.int64),
        np.array([0, _FILLER_TOKENS]),
        (sample_ids, row_sources, np.zeros(num_rows + 1, dtype=np.int64)),
        np.zeros((2, num_rows), dtype=np.int64) if skipped is None else skipped,
        np.array([[0], [_FILLER_TOKENS]]),
    )


def pack_documents(documents: Sequence[np.ndarray | Sequence[int]], source: int = 0) -> Batch:
    """Whole documents, each an array of token ids, as one batch: a piece and a row each, sample_ids 0, 1, ….

    For held-out scoring and probes; the document ids are zero. Raises ValueError for no documents or an empty one.
    """
    if not documents or any(not len(document) for document in documents):
        raise ValueError("pack_documents needs at least one document, and a token in each")
    num = len(documents)
    bounds = np.cumsum([0, *(len(document) for document in documents)], dtype=np.int64)
    input_ids = np.concatenate([np.asarray(document).astype(np.int64) for document in documents])
    by_row = (np.arange(num), np.full(num, source, dtype=np.int64), bounds)
    return _batch(input_ids, bounds, by_row, np.zeros((2, num), dtype=np.int64), NO_RUNS)


def _batch(
    input_ids: np.ndarray,
    bounds: np.ndarray,
    by_row: tuple[np.ndarray, np.ndarray, np.ndarray],
    skipped: np.ndarray,
    unlabelled: np.ndarray,
) -> Batch:
    """A batch of pieces between `bounds` (int64 [pieces + 1]) of documents without ids; all else is as in `Batch`."""
    doc_ids = np.zeros((len(bounds) - 1, 16), dtype=np.uint8)
    lengths = np.diff(bounds).astype(np.int32)
    arrays = (input_ids, bounds.astype(np.int32), doc_ids, lengths, *by_row, *skipped, NO_RUNS, unlabelled, NO_RUNS)
    return Batch(*map(torch.from_numpy, arrays))
