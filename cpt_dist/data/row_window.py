"""Rows that will be read one micro-batch after the other: their documents are looked up many rows at a time.

The documents of all of a window's rows in one shard are found when the first of them is read, so a shard that nothing
was read from is left alone, and a call of numpy serves many rows. What remains for each row is one copy of its tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import chain
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
    doc_lengths: np.ndarray
    """int32 [pieces]: tokens of the whole document of each."""
    ends_document: list[bool]
    """Of each span of the row, whether it ends where a document does."""


class RowWindow:
    """Rows of several sources, and the micro-batches of any that follow one another.

    `source` (int64 [rows], an index into `sources`) and `sample_ids` (int64 [rows]) are those of `rows`.
    """

    def __init__(
        self, sources: Sequence[RowSource], source: np.ndarray, rows: Sequence[Row], sample_ids: np.ndarray
    ) -> None:
        self._sources, self._sample_ids, self._source = list(sources), sample_ids, source
        self._rows, self._of = rows, source.tolist()
        counts = [len(row.spans) for row in rows]
        edges = chain.from_iterable(chain.from_iterable([row.spans for row in rows]))
        self._spans = np.fromiter(edges, dtype=np.int64, count=2 * sum(counts)).reshape(-1, 2)
        self._first_span = np.cumsum([0, *counts])
        ends = np.zeros(len(self._spans) + 1, dtype=np.int64)
        np.cumsum(self._spans[:, 1] - self._spans[:, 0], out=ends[1:])
        self._bounds = ends[self._first_span]
        self._none_skipped = np.zeros((2, len(rows)), dtype=np.int64)
        self._pieces: list[_Pieces | None] = [None] * len(rows)
        self._in_shard: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        for number, key in enumerate(zip(self._of, [row.shard for row in rows], strict=True)):
            self._in_shard[key].append(number)

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
        lengths, doc_ids, doc_lengths = [], [], []
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
            doc_lengths.append(pieces.doc_lengths)
            origin = self._sources[self._of[number]]
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
            np.concatenate(doc_lengths),
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
        shard, source = self._rows[number].shard, self._of[number]
        origin, members = self._sources[source], np.array(self._in_shard[source, shard])
        offsets = origin.doc_offsets(shard).view(np.int64)
        ends_in_window = self._first_span[members + 1]
        num_spans = ends_in_window - self._first_span[members]
        last_spans = np.cumsum(num_spans)
        spans = self._spans[np.arange(last_spans[-1]) + np.repeat(ends_in_window - last_spans, num_spans)]
        starts, stops = spans.T
        firsts, lasts = offsets.searchsorted(starts, "right") - 1, offsets.searchsorted(stops)
        counts = lasts - firsts
        ends = np.cumsum(counts)
        documents = np.arange(ends[-1]) + np.repeat(firsts - ends + counts, counts)
        lengths = np.minimum(offsets[documents + 1], np.repeat(stops, counts))
        lengths -= np.maximum(offsets[documents], np.repeat(starts, counts))
        # Pieces up to the end of each row; those without tokens are left out.
        last_pieces = np.append(0, np.cumsum(lengths > 0))[np.append(0, ends)[last_spans]].tolist()
        present = np.flatnonzero(lengths)
        doc_ids = origin.doc_ids(shard).take(documents[present], axis=0)
        narrow = lengths[present].astype(np.int32)
        whole = (offsets[documents[present] + 1] - offsets[documents[present]]).astype(np.int32)
        ends_document = (offsets[lasts] == stops).tolist()
        piece, span = 0, 0
        for one, last_piece, last_span in zip(members.tolist(), last_pieces, last_spans.tolist(), strict=True):
            own = slice(piece, last_piece)
            self._pieces[one] = _Pieces(narrow[own], doc_ids[own], whole[own], ends_document[span:last_span])
            piece, span = last_piece, last_span
        found = self._pieces[number]
        assert found is not None, "a row is among the rows in its shard"
        return found
