"""Micro-batches: rows read from shards and laid end to end, without padding, with the bounds of their documents.

Labels are shifted here, once, along document boundaries: the label of a token is the token after it in the same
document, also where that one is in the next row, and there is none for a document's last token. Nothing is drawn or
decided here; `order.py` says which rows, `loader.py` which rank takes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np
import torch

from cpt_dist.data.blocks import Blocks
from cpt_dist.data.masking import IGNORE_INDEX, TakenDown, mask_rows, place_rows, rows_left
from cpt_dist.data.packing import PackPlan, Row, RowSource

_FILLER_TOKENS = 2
_NO_SOURCE = -1


@dataclass
class Batch:
    """One micro-batch of T tokens in `pieces` document pieces of `rows` rows, flattened, without padding."""

    input_ids: torch.Tensor
    """int64 [T]."""
    labels: torch.Tensor
    """int64 [T]: the token after input_ids[t] in its document, -100 where there is none. Already shifted."""
    position_ids: torch.Tensor
    """int64 [T]: 0, 1, … within each piece, or within each row (`StageConfig.positions`)."""
    cu_seqlens: torch.Tensor
    """int32 [pieces + 1]: piece i has the tokens [cu_seqlens[i], cu_seqlens[i + 1])."""
    source_ids: torch.Tensor
    """int64 [T]: index into `SampleOrder.source_names`; -1 in a filler."""
    doc_ids: torch.Tensor
    """uint8 [pieces, 16]: id of the document that each piece is of."""
    sample_ids: torch.Tensor
    """int64 [rows]: global index n of each row."""
    row_sources: torch.Tensor
    """int64 [rows]: source of each row, as in source_ids."""
    skipped_pieces: torch.Tensor
    """int64 [rows]: pieces that each row lost because their documents were taken down."""
    skipped_tokens: torch.Tensor
    """int64 [rows]: tokens of those pieces."""

    @property
    def is_filler(self) -> bool:
        """Whether no token of it is of a row: it has no rows, or rows of which everything was taken down."""
        return bool(self.source_ids[0] < 0)

    @property
    def num_tokens(self) -> int:
        """Input tokens."""
        return self.input_ids.numel()

    @property
    def num_target_tokens(self) -> int:
        """Tokens that have a label."""
        return int((self.labels != IGNORE_INDEX).sum())

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch on another device."""
        return Batch(*(getattr(self, f.name).to(device, non_blocking=non_blocking) for f in fields(self)))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory (called by torch's DataLoader)."""
        return Batch(*(getattr(self, f.name).pin_memory() for f in fields(self)))


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
    origins = [sources[source_index] for source_index in source.tolist()]
    sample_ids, source = np.array(sample_ids, dtype=np.int64), np.array(source, dtype=np.int64)
    skipped = np.zeros((2, len(rows)), dtype=np.int64)
    left = None
    if taken:
        left = rows_left(origins, rows, sample_ids.tolist(), taken)
        rows, skipped = left.rows, np.stack([left.pieces, left.tokens])
        if not any(where.spans for where in rows):
            return filler_batch(sample_ids, source, skipped)
    num_tokens = sum(where.num_tokens for where in rows)
    columns = _blocks.columns(4, num_tokens)
    input_ids, source_ids = columns[0], columns[1]
    begins, doc_ids, row_begins = [], [], []
    continued: list[tuple[int, int]] = []  # (place of a span's last token, the token after it in its document)
    at = 0
    for source_index, origin, where in zip(source.tolist(), origins, rows, strict=True):
        row_begins.append(at)
        if not where.spans:
            continue
        offsets = origin.doc_offsets(where.shard).view(np.int64)
        documents, begin, ends_document = _row_pieces(where, offsets, at)
        begins.append(begin)
        doc_ids.append(origin.doc_ids(where.shard)[documents])
        for (first, last), is_end in zip(where.spans, ends_document, strict=True):
            stop = at + last - first
            # A span that ends within a document is read with the one token after it, the label of its last token.
            tokens = origin.tokens(where.shard, first, last if is_end else last + 1)
            input_ids[at:stop] = tokens[: last - first]
            if not is_end:
                continued.append((stop - 1, int(tokens[-1])))
            at = stop
        source_ids[row_begins[-1] : at] = source_index
    batch = _batch(
        columns,
        np.concatenate([*begins, [num_tokens]], dtype=np.int64),
        np.concatenate(doc_ids),
        (sample_ids, source, *skipped),
        continued,
        np.array([*row_begins, num_tokens], dtype=np.int64) if positions == "continue" else None,
    )
    if left and positions == "continue":
        place_rows(batch.position_ids.numpy(), left)
    mask_rows(batch.labels.numpy(), origins, rows)
    return batch


def _row_pieces(row: Row, offsets: np.ndarray, at: int) -> tuple[slice | np.ndarray, np.ndarray, list[bool]]:
    """The document pieces of a row whose first token gets the place `at` of the batch.

    `offsets` is int64 [num_documents + 1]. Returns index of each piece's document, place of the piece's first token,
    and for each span whether it ends where a document does. Boundaries come from the record, never from a separator
    token. A document without tokens gives a piece without tokens.
    """
    if len(row.spans) == 1:
        ((start, stop),) = row.spans
        first = int(offsets.searchsorted(start, "right")) - 1
        last = int(offsets.searchsorted(stop))
        begin = offsets[first:last] + (at - start)
        begin[0] = at
        return slice(first, last), begin, [bool(offsets[last] == stop)]
    starts, stops = np.array(row.spans, dtype=np.int64).T
    lasts = offsets.searchsorted(stops)
    firsts = offsets.searchsorted(starts, "right") - 1
    counts = lasts - firsts
    ends = np.cumsum(counts)
    documents = np.arange(ends[-1]) + np.repeat(firsts - ends + counts, counts)
    lengths = stops - starts
    begin = np.maximum(offsets[documents], np.repeat(starts, counts))
    begin += np.repeat(np.cumsum(lengths) - lengths - starts + at, counts)
    return documents, begin, (offsets[lasts] == stops).tolist()


_blocks = Blocks()
_counting = np.arange(1 << 16, dtype=np.int64)


def _batch(
    columns: np.ndarray,
    bounds: np.ndarray,
    doc_ids: np.ndarray,
    by_row: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    continued: Sequence[tuple[int, int]] = (),
    counted: np.ndarray | None = None,
) -> Batch:
    """The batch of pieces between `bounds` (int64 [pieces + 1]), some of which may have no token.

    `columns` is int64 [4, tokens]: input_ids, source_ids, and labels and positions, which are filled in here. `by_row`
    (int64 [rows] each) are sample_ids, row_sources, skipped_pieces and skipped_tokens. `continued`: (place, label) of
    last tokens whose document goes on elsewhere. Positions count between the places `counted` (int64 [n + 1],
    default: `bounds`).
    """
    lengths = bounds[1:] - bounds[:-1]
    if not lengths.all():
        present = np.flatnonzero(lengths)
        lengths, doc_ids, bounds = lengths[present], doc_ids[present], np.append(bounds[present], bounds[-1])
    input_ids, source_ids, labels, positions = columns
    num_tokens = len(input_ids)
    labels[:-1] = input_ids[1:]
    labels[bounds[1:] - 1] = IGNORE_INDEX
    if continued:
        places, following = zip(*continued, strict=True)
        labels[list(places)] = following
    begins = bounds if counted is None else counted
    counting = _counting if num_tokens <= len(_counting) else np.arange(num_tokens)
    for begin, end in pairwise(begins.tolist()):
        positions[begin:end] = counting[: end - begin]
    arrays = (input_ids, labels, positions, bounds.astype(np.int32), source_ids, doc_ids, *by_row)
    return Batch(*(torch.from_numpy(array) for array in arrays))


def filler_batch(
    sample_ids: np.ndarray | None = None, row_sources: np.ndarray | None = None, skipped: np.ndarray | None = None
) -> Batch:
    """A batch of no targets, for a rank that has no tokens left and must still enter the collectives.

    Without arguments it has no rows; else those of `sample_ids`, of which everything was `skipped` (int64 [2, rows]:
    pieces and tokens).
    """
    none = np.empty(0, dtype=np.int64)
    sample_ids, row_sources = (none if given is None else given for given in (sample_ids, row_sources))
    lost = np.zeros((2, len(sample_ids)), dtype=np.int64) if skipped is None else skipped
    columns = np.zeros((4, _FILLER_TOKENS), dtype=np.int64)
    columns[1] = _NO_SOURCE
    batch = _batch(
        columns,
        np.array([0, _FILLER_TOKENS], dtype=np.int64),
        np.zeros((1, 16), dtype=np.uint8),
        (sample_ids, row_sources, *lost),
    )
    batch.labels.fill_(IGNORE_INDEX)
    return batch


def pack_documents(documents: Sequence[np.ndarray | Sequence[int]], source: int = 0) -> Batch:
    """Whole documents, each an array of token ids, as one batch: a piece and a row each, sample_ids 0, 1, ….

    For held-out scoring and probes; the document ids are zero. Raises ValueError for no documents or an empty one.
    """
    if not documents or any(not len(document) for document in documents):
        raise ValueError("pack_documents needs at least one document, and a token in each")
    num = len(documents)
    bounds = np.cumsum([0, *(len(document) for document in documents)], dtype=np.int64)
    columns = np.empty((4, int(bounds[-1])), dtype=np.int64)
    columns[0] = np.concatenate([np.asarray(document).astype(np.int64) for document in documents])
    columns[1] = source
    return _batch(
        columns,
        bounds,
        np.zeros((num, 16), dtype=np.uint8),
        (np.arange(num), np.full(num, source, dtype=np.int64), *np.zeros((2, num), dtype=np.int64)),
    )
