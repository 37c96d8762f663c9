"""Micro-batches: rows read from shards and laid end to end, without padding, with the bounds of their documents.

Labels are shifted here, once, along document boundaries: the label of a token is the token after it in the same
document, also where that one is in the next row, and there is none for a document's last token. Nothing is drawn or
decided here; `order.py` says which rows, `loader.py` which rank takes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np
import torch

from cpt_dist.data.blocks import Blocks
from cpt_dist.data.packing import PackPlan, Row

IGNORE_INDEX = -100
"""Label of a token that isn't to predict anything."""

_FILLER_TOKENS = 2


class TokenSource(Protocol):
    """What of `cpt_dist.data.shards.Source` a batch is read from."""

    shard_tokens: np.ndarray

    def tokens(self, shard: int, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) of a shard, u16 or u32."""

    def doc_offsets(self, shard: int) -> np.ndarray:
        """uint64 [num_documents + 1]."""

    def doc_ids(self, shard: int) -> np.ndarray:
        """uint8 [num_documents, 16]."""


@dataclass
class Batch:
    """One micro-batch of T tokens in `pieces` document pieces of `rows` rows, flattened, without padding."""

    input_ids: torch.Tensor
    """int64 [T]."""
    labels: torch.Tensor
    """int64 [T]: the token after input_ids[t] in its document, -100 where there is none. Already shifted."""
    position_ids: torch.Tensor
    """int64 [T]: 0, 1, … within each piece."""
    cu_seqlens: torch.Tensor
    """int32 [pieces + 1]: piece i has the tokens [cu_seqlens[i], cu_seqlens[i + 1])."""
    source_ids: torch.Tensor
    """int64 [T]: index into `SampleOrder.source_names`."""
    doc_ids: torch.Tensor
    """uint8 [pieces, 16]: id of the document that each piece is of."""
    sample_ids: torch.Tensor
    """int64 [rows]: global index n of each row; empty for a filler."""

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
    sources: Sequence[TokenSource],
    plans: Sequence[PackPlan],
    source: np.ndarray,
    row: np.ndarray,
    sample_ids: np.ndarray,
    positions: str = "restart",
) -> Batch:
    """The micro-batch of the rows `row` of `source` (int64 [rows], indices into `sources` and `plans`).

    `positions` is restart or continue (`DataConfig.positions`). A span that ends within a document is read with the
    one token after it, which is the label of its last token. Raises ValueError for no rows, and UserError for a
    damaged block of a shard.
    """
    if not len(row):
        raise ValueError("a batch needs a row; a rank without one takes filler_batch()")
    owners = source.tolist()
    rows = [plans[owner].row(index) for owner, index in zip(owners, row.tolist(), strict=True)]
    num_tokens = sum(stop - start for where in rows for start, stop in where.spans)
    columns = _columns(num_tokens)
    input_ids, source_ids = columns[0], columns[3]
    begins, firsts, doc_ids = [], [], []
    continued: list[tuple[int, int]] = []  # (place of a row's last token, token after it in the same document)
    at = 0
    for owner, where in zip(owners, rows, strict=True):
        origin = sources[owner]
        offsets = origin.doc_offsets(where.shard).view(np.int64)  # so that no key turns the array into doubles
        documents, begin, ends_document = _row_pieces(where, offsets, at)
        row_at = at
        for (first, last), is_end in zip(where.spans, ends_document, strict=True):
            tokens = origin.tokens(where.shard, first, last if is_end else last + 1)
            stop = at + last - first
            input_ids[at:stop] = tokens if is_end else tokens[:-1]
            if not is_end:
                continued.append((stop - 1, int(tokens[-1])))
            at = stop
        source_ids[row_at:at] = owner
        begins.append(begin)
        if positions == "continue":
            firsts.append(_tokens_before(where, offsets[documents]))
        doc_ids.append(origin.doc_ids(where.shard)[documents])
    return _batch(
        columns,
        np.concatenate([*begins, [num_tokens]], dtype=np.int64),
        np.concatenate(doc_ids),
        np.array(sample_ids, dtype=np.int64),
        continued,
        np.concatenate(firsts) if firsts else None,
    )


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
    lasts = offsets.searchsorted(stops, side="left")
    firsts = offsets.searchsorted(starts, side="right") - 1
    counts = lasts - firsts
    ends = np.cumsum(counts)
    documents = np.arange(ends[-1]) + np.repeat(firsts - ends + counts, counts)
    lengths = stops - starts
    begin = np.maximum(offsets[documents], np.repeat(starts, counts))
    begin += np.repeat(np.cumsum(lengths) - lengths - starts + at, counts)
    return documents, begin, (offsets[lasts] == stops).tolist()


def _tokens_before(row: Row, document_begins: np.ndarray) -> np.ndarray:
    """int64 [pieces]: tokens that each piece's document has before it. Only a span's first piece can have any."""
    starts = np.array([start for start, _ in row.spans])
    own = np.maximum(np.searchsorted(document_begins, starts, side="right") - 1, 0)
    result = np.zeros(len(document_begins), dtype=np.int64)
    result[own] = starts - document_begins[own]
    return result


def _columns(num_tokens: int) -> np.ndarray:
    """int64 [4, tokens], not filled: input_ids, labels, position_ids and source_ids of a batch."""
    return _blocks.columns(4, num_tokens)


_blocks = Blocks()
_counting = np.arange(1 << 16, dtype=np.int64)


def _batch(
    columns: np.ndarray,
    bounds: np.ndarray,
    doc_ids: np.ndarray,
    sample_ids: np.ndarray,
    continued: Sequence[tuple[int, int]] = (),
    skipped: np.ndarray | None = None,
) -> Batch:
    """The batch of pieces between `bounds` (int64 [pieces + 1]), some of which may have no token.

    `columns` (`_columns`) has input_ids and source_ids; labels and positions are filled in here.
    `continued`: (place, label) of last tokens whose document goes on elsewhere. `skipped` (int64 [pieces]): tokens of
    the document before each piece, which the positions then count from.
    """
    lengths = bounds[1:] - bounds[:-1]
    if not lengths.all():
        present = np.flatnonzero(lengths)
        lengths, doc_ids, bounds = lengths[present], doc_ids[present], np.append(bounds[present], bounds[-1])
        skipped = None if skipped is None else skipped[present]
    input_ids, labels, positions, source_ids = columns
    num_tokens = len(input_ids)
    labels[:-1] = input_ids[1:]
    labels[bounds[1:] - 1] = IGNORE_INDEX
    if continued:
        places, following = zip(*continued, strict=True)
        labels[list(places)] = following
    origins = np.repeat(bounds[:-1] if skipped is None else bounds[:-1] - skipped, lengths)
    counting = _counting[:num_tokens] if num_tokens <= len(_counting) else np.arange(num_tokens)
    np.subtract(counting, origins, out=positions)
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        labels=torch.from_numpy(labels),
        position_ids=torch.from_numpy(positions),
        cu_seqlens=torch.from_numpy(bounds.astype(np.int32)),
        source_ids=torch.from_numpy(source_ids),
        doc_ids=torch.from_numpy(doc_ids),
        sample_ids=torch.from_numpy(sample_ids),
    )


def filler_batch() -> Batch:
    """A batch of no rows and no targets, for a rank that has none left and must still enter the collectives."""
    columns = np.zeros((4, _FILLER_TOKENS), dtype=np.int64)
    ids = np.zeros((1, 16), dtype=np.uint8)
    batch = _batch(columns, np.array([0, _FILLER_TOKENS]), ids, np.empty(0, dtype=np.int64))
    batch.labels.fill_(IGNORE_INDEX)
    return batch


def pack_documents(documents: Sequence[np.ndarray | Sequence[int]], source: int = 0) -> Batch:
    """Whole documents, each an array of token ids, as one batch: a piece and a row each, sample_ids 0, 1, ….

    For held-out scoring and probes; the document ids are zero. Raises ValueError for no documents or an empty one.
    """
    if not documents or any(not len(document) for document in documents):
        raise ValueError("pack_documents needs at least one document, and a token in each")
    bounds = np.cumsum([0, *(len(document) for document in documents)], dtype=np.int64)
    columns = _columns(int(bounds[-1]))
    columns[0] = np.concatenate([np.asarray(document).astype(np.int64) for document in documents])
    columns[3] = source
    return _batch(
        columns,
        bounds,
        np.zeros((len(documents), 16), dtype=np.uint8),
        np.arange(len(documents), dtype=np.int64),
    )
