"""Micro-batches: rows read from shards and laid end to end, without padding, with the bounds of their documents.

Labels are shifted here, once, along document boundaries: the label of a token is the token after it in the same
document, also where that one is in the next row, and there is none for a document's last token. Nothing is drawn or
decided here; `order.py` says which rows, `loader.py` which rank takes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from cpt_dist.data.masking import IGNORE_INDEX, TakenDown, mask_rows, place_rows, rows_left
from cpt_dist.data.packing import PackPlan, RowSource, document_pieces

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


class _Assembly:
    """Collects pieces and their labels and makes the batch."""

    def __init__(self) -> None:
        self.input_ids: list[np.ndarray] = []
        self.labels: list[np.ndarray] = []
        self.lengths: list[np.ndarray] = []
        self.sources: list[int] = []
        self.source_tokens: list[int] = []
        self.doc_ids: list[np.ndarray] = []

    def add(self, input_ids: np.ndarray, labels: np.ndarray, lengths: np.ndarray, ids: np.ndarray, source: int) -> None:
        self.input_ids.append(input_ids)
        self.labels.append(labels)
        self.lengths.append(lengths)
        self.doc_ids.append(ids)
        self.sources.append(source)
        self.source_tokens.append(input_ids.size)

    def batch(
        self,
        sample_ids: np.ndarray,
        row_sources: np.ndarray,
        skipped: np.ndarray | None = None,
        row_tokens: Sequence[int] = (),
    ) -> Batch:
        """The batch; positions count within pieces, or within rows where their lengths `row_tokens` are given."""
        lost = np.zeros((2, len(sample_ids)), dtype=np.int64) if skipped is None else skipped
        lengths = np.concatenate(self.lengths)
        bounds = np.concatenate([[0], np.cumsum(lengths)])
        counted = np.array(row_tokens) if row_tokens else lengths
        positions = np.arange(bounds[-1], dtype=np.int64) - np.repeat(np.cumsum(counted) - counted, counted)
        return Batch(
            input_ids=torch.from_numpy(np.concatenate(self.input_ids, dtype=np.int64)),
            labels=torch.from_numpy(np.concatenate(self.labels, dtype=np.int64)),
            position_ids=torch.from_numpy(positions),
            cu_seqlens=torch.from_numpy(bounds.astype(np.int32)),
            source_ids=torch.from_numpy(np.repeat(np.array(self.sources, dtype=np.int64), self.source_tokens)),
            doc_ids=torch.from_numpy(np.concatenate(self.doc_ids)),
            sample_ids=torch.from_numpy(sample_ids),
            row_sources=torch.from_numpy(row_sources),
            skipped_pieces=torch.from_numpy(lost[0]),
            skipped_tokens=torch.from_numpy(lost[1]),
        )


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
    assembly = _Assembly()
    for source_index, origin, where in zip(source.tolist(), origins, rows, strict=True):
        offsets = origin.doc_offsets(where.shard)
        for start, stop in where.spans:
            with_next = origin.tokens(where.shard, start, min(stop + 1, int(origin.shard_tokens[where.shard])))
            labels = np.full(stop - start, IGNORE_INDEX, dtype=np.int64)
            labels[: with_next.size - 1] = with_next[1:]
            first, bounds = document_pieces(offsets, start, stop)
            lengths = np.diff(bounds)
            present = np.flatnonzero(lengths)
            documents = first + present
            ends = bounds[1:][present]
            closed = ends[ends.astype(np.uint64) == offsets[documents + 1]]
            labels[closed - 1 - start] = IGNORE_INDEX
            ids = origin.doc_ids(where.shard)[documents]
            assembly.add(with_next[: stop - start], labels, lengths[present], ids, source_index)
    batch = assembly.batch(
        sample_ids, source, skipped, [where.num_tokens for where in rows] if positions == "continue" else ()
    )
    if left and positions == "continue":
        place_rows(batch.position_ids.numpy(), left)
    mask_rows(batch.labels.numpy(), origins, rows)
    return batch


def filler_batch(
    sample_ids: np.ndarray | None = None, row_sources: np.ndarray | None = None, skipped: np.ndarray | None = None
) -> Batch:
    """A batch of no targets, for a rank that has no tokens left and must still enter the collectives.

    Without arguments it has no rows; else those of `sample_ids`, of which everything was `skipped` (int64 [2, rows]:
    pieces and tokens).
    """
    assembly = _Assembly()
    zeros = np.zeros(_FILLER_TOKENS, dtype=np.int64)
    ids = np.zeros((1, 16), dtype=np.uint8)
    assembly.add(zeros, np.full(_FILLER_TOKENS, IGNORE_INDEX), np.array([_FILLER_TOKENS]), ids, _NO_SOURCE)
    none = np.empty(0, dtype=np.int64)
    return assembly.batch(
        none if sample_ids is None else sample_ids, none if row_sources is None else row_sources, skipped
    )


def pack_documents(documents: Sequence[np.ndarray | Sequence[int]], source: int = 0) -> Batch:
    """Whole documents, each an array of token ids, as one batch: a piece and a row each, sample_ids 0, 1, ….

    For held-out scoring and probes; the document ids are zero. Raises ValueError for no documents or an empty one.
    """
    if not documents or any(not len(document) for document in documents):
        raise ValueError("pack_documents needs at least one document, and a token in each")
    assembly = _Assembly()
    ids = np.zeros((1, 16), dtype=np.uint8)
    for document in documents:
        tokens = np.asarray(document).astype(np.int64)
        labels = np.append(tokens[1:], IGNORE_INDEX)
        assembly.add(tokens, labels, np.array([tokens.size]), ids, source)
    return assembly.batch(np.arange(len(documents), dtype=np.int64), np.full(len(documents), source, dtype=np.int64))
