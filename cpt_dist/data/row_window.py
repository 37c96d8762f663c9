"""Rows that will be read one micro-batch after the other: their documents are looked up many rows at a time.

The documents of all of a window's rows in one shard are found when the first of them is read, so a shard that nothing
was read from is left alone, and a call of numpy serves many rows. What remains for each row is one copy of its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from cpt_dist.data.batch import Batch
from cpt_dist.data.blocks import Blocks
from cpt_dist.data.masking import unlabelled_runs
from cpt_dist.data.packing import Row, RowSource

NO_RUNS = np.empty((2, 0), dtype=np.int64)

_blocks = Blocks()


class _Pieces(NamedTuple):
    """The document pieces of one row."""

    lengths: np.ndarray
    """int32 [pieces]: tokens of each."""
    doc_ids: np.ndarray
    """uint8 [pieces, 16]."""
    ends_document: list[bool]
    """Of each span of the row, whether it ends where a document does."""


class RowWindow:
    """Rows of several sources, and the micro-batches of any that follow one another.

    `source` (int64 [rows], an index into `sources`) and `sample_ids` (int64 [rows]) are those of `rows`.
    """

    def __init__(
        self, sources: Sequence[RowSource], source: np.ndarray, rows: Sequence[Row], sample_ids: np.ndarray
    ) -> None:
        self._rows, self._sample_ids, self._source = rows, sample_ids, source
        self._origins = [sources[number] for number in source.tolist()]
        self._bounds = np.cumsum([0, *(row.num_tokens for row in rows)], dtype=np.int64)
        self._none_skipped = np.zeros((2, len(rows)), dtype=np.int64)
        self._pieces: list[_Pieces | None] = [None] * len(rows)
        self._in_shard: dict[tuple[int, int], list[int]] = {}
        for number, (of, row) in enumerate(zip(source.tolist(), rows, strict=True)):
            self._in_shard.setdefault((of, row.shard), []).append(number)

    def batch(
        self,
        first: int,
        last: int,
        positions: str = "restart",
        skipped: np.ndarray | None = None,
        position_runs: np.ndarray | None = None,
    ) -> Batch:
        """The micro-batch of the rows [first, last), not all empty.

        `positions` is one of `config.POSITIONS`; `skipped` (int64 [2, rows]: pieces and tokens that were taken down)
        and `position_runs` (`Batch.position_runs`) are given for rows of which something was. Raises UserError for a
        damaged block of a shard.
        """
        bounds = self._bounds[first : last + 1] - self._bounds[first]
        input_ids = _blocks.array(int(bounds[-1]))
        lengths, doc_ids = [], []
        continued: list[tuple[int, int]] = []  # (place of a span's last token, the token after it in its document)
        unlabelled: list[np.ndarray] = []
        at = 0
        for number in range(first, last):
            shard, spans = self._rows[number]
            if not spans:
                continue
            pieces = self._pieces[number] or self._find(number)
            lengths.append(pieces.lengths)
            doc_ids.append(pieces.doc_ids)
            origin = self._origins[number]
            loss_spans = origin.loss_spans(shard)
            for (start, end), is_end in zip(spans, pieces.ends_document, strict=True):
                stop = at + end - start
                if is_end:
                    input_ids[at:stop] = origin.tokens(shard, start, end)
                else:  # read with the one token after it, the label of its last token
                    tokens = origin.tokens(shard, start, end + 1)
                    input_ids[at:stop] = tokens[:-1]
                    continued.append((stop - 1, int(tokens[-1])))
                if loss_spans is not None:
                    unlabelled.append(unlabelled_runs(loss_spans, start, end) + at)
                at = stop
        all_lengths = np.concatenate(lengths)
        cu_seqlens = np.zeros(len(all_lengths) + 1, dtype=np.int32)
        np.cumsum(all_lengths, dtype=np.int32, out=cu_seqlens[1:])
        if position_runs is None:
            position_runs = NO_RUNS if positions == "restart" else np.stack([bounds[:-1], np.zeros_like(bounds[:-1])])
        arrays = (
            input_ids,
            cu_seqlens,
            np.concatenate(doc_ids),
            self._sample_ids[first:last],
            self._source[first:last],
            bounds,
            *(self._none_skipped[:, first:last] if skipped is None else skipped),
            np.array(continued, dtype=np.int64).T if continued else NO_RUNS,
            np.concatenate(unlabelled, axis=1) if unlabelled else NO_RUNS,
            position_runs,
        )
        return Batch(*map(torch.from_numpy, arrays))

    def _find(self, number: int) -> _Pieces:
        """The pieces of a row, after those of all rows in its shard were found.

        Boundaries come from the record, never from a separator token. A document without tokens gives no piece.
        """
        shard, origin = self._rows[number].shard, self._origins[number]
        members = self._in_shard[int(self._source[number]), shard]
        offsets = origin.doc_offsets(shard).view(np.int64)
        starts, stops = np.array([span for one in members for span in self._rows[one].spans], dtype=np.int64).T
        firsts, lasts = offsets.searchsorted(starts, "right") - 1, offsets.searchsorted(stops)
        counts = lasts - firsts
        ends = np.cumsum(counts)
        documents = np.arange(ends[-1]) + np.repeat(firsts - ends + counts, counts)
        lengths = np.minimum(offsets[documents + 1], np.repeat(stops, counts))
        lengths -= np.maximum(offsets[documents], np.repeat(starts, counts))
        # Pieces before each span: those without tokens are left out.
        before = np.concatenate([[0], np.cumsum(lengths > 0)])[np.concatenate([[0], ends])].tolist()
        present = np.flatnonzero(lengths)
        doc_ids = origin.doc_ids(shard)[documents[present]]
        narrow = lengths[present].astype(np.int32)
        ends_document = (offsets[lasts] == stops).tolist()
        at = 0
        for one in members:
            end = at + len(self._rows[one].spans)
            chosen = slice(before[at], before[end])
            self._pieces[one] = _Pieces(narrow[chosen], doc_ids[chosen], ends_document[at:end])
            at = end
        found = self._pieces[number]
        assert found is not None, "a row is among the rows in its shard"
        return found
