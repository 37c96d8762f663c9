"""Pack plans: which tokens of which shard make row r, for one sequence length.

A plan is arithmetic over the sizes in a manifest, so another sequence length is another plan over the same files and
nothing is rewritten. Rows stay inside one shard, which keeps each readable alone (Megatron-core's rows cross files).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np


class Row(NamedTuple):
    """The tokens of one row: spans [start, stop) of a single shard, in the order in which they are read."""

    shard: int
    spans: tuple[tuple[int, int], ...]

    @property
    def num_tokens(self) -> int:
        """Tokens of the row, at most the plan's sequence length."""
        return sum([stop - start for start, stop in self.spans])


class RowSource(Protocol):
    """What plans and batches read: a `cpt_dist.data.shards.Source`, or a view of one that holds some of its documents.

    Two objects are two sources (`plans.py` keeps plans by identity).
    """

    name: str
    role: str
    fingerprint: str
    plan_folder: Path | None
    """Folder on this machine in which plans are kept for later processes; None: nowhere."""
    shard_tokens: np.ndarray
    """int64 [num_shards]: tokens in each shard file, of documents of the source or not."""

    def tokens(self, shard: int, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) of a shard, u16 or u32."""

    def doc_offsets(self, shard: int) -> np.ndarray:
        """uint64 [num_documents + 1]: of all documents of the shard."""

    def doc_ids(self, shard: int) -> np.ndarray:
        """uint8 [num_documents, 16]: of all documents of the shard."""

    def loss_spans(self, shard: int) -> np.ndarray | None:
        """uint64 [num_spans, 2], rising: the tokens [start, stop) of the shard that are to be predicted; None: all."""

    def cuts(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        """Ends of paragraphs and of other lines in long documents, each int64, rising: first tokens of what follows."""

    def documents(self, shard: int) -> np.ndarray | None:
        """int64, rising: numbers of the shard's documents that belong to the source; None: all."""


def selected_documents(source: RowSource, shard: int) -> np.ndarray:
    """Starts and stops, int64 [n, 2], of the documents of a shard that belong to the source; some may be empty."""
    offsets = source.doc_offsets(shard).astype(np.int64)
    documents = source.documents(shard)
    bounds = np.stack([offsets[:-1], offsets[1:]], axis=1)
    return bounds if documents is None else bounds[documents]


class PackPlan(Protocol):
    """What the sample order and the batches need of a way of packing."""

    @property
    def num_rows(self) -> int:
        """Rows of the source; row indices are 0 … num_rows-1."""

    @property
    def num_tokens(self) -> int:
        """Tokens in all rows together."""

    @property
    def rows_per_shard(self) -> np.ndarray:
        """int64 [num_shards]: rows in each shard; rows are numbered through the shards in their order."""

    def row(self, index: int) -> Row:
        """Where the tokens of row `index` lie; raises IndexError outside 0 … num_rows-1."""

    def rows(self, index: np.ndarray) -> list[Row]:
        """`row` of each of `index` (int64 [n]), quicker than one by one."""

    def rows_of(self, shard: int, start: int, stop: int) -> np.ndarray:
        """int64, rising: the rows that hold any of the tokens [start, stop) of a shard; `row` the other way round."""


def rows_in_plans(plans: Sequence[PackPlan], source: np.ndarray, index: np.ndarray) -> list[Row]:
    """The rows `index` (int64 [n]) of the plans number `source` (int64 [n])."""
    grouped = np.argsort(source, kind="stable")
    rows: list[Row] = []
    for number in np.unique(source).tolist():
        rows += plans[number].rows(index[source == number])
    return [rows[place] for place in np.argsort(grouped).tolist()]


class ConcatAndChunk:
    """Each shard's tokens cut every `seq_len`; a shard's last row is shorter, and no token is lost or padded.

    `shard_tokens` is int64 [num_shards]: the tokens of each shard that are packed. `runs` (shard -> int64 [n, 2]) has
    the rising token ranges in which they lie, for the shards of which they are a part. Raises ValueError if
    seq_len < 1.
    """

    def __init__(self, shard_tokens: np.ndarray, seq_len: int, runs: Mapping[int, np.ndarray] | None = None) -> None:
        if seq_len < 1:
            raise ValueError(f"seq_len {seq_len} must be at least 1")
        self.seq_len = seq_len
        self._shard_tokens = np.asarray(shard_tokens, dtype=np.int64)
        self._first_rows = np.concatenate([[0], np.cumsum(-(-self._shard_tokens // seq_len))])
        self._runs = dict(runs or {})
        # Packed tokens before each run: from a place in the stream of packed tokens to one in the shard, and back.
        self._before = {shard: np.cumsum([0, *np.diff(run)[:, 0]]) for shard, run in self._runs.items()}

    @classmethod
    def of(cls, source: RowSource, seq_len: int) -> ConcatAndChunk:
        """The plan of a source; of one with a part of its documents, those laid end to end and then cut."""
        shard_tokens = source.shard_tokens.copy()
        runs = {}
        for shard in range(len(shard_tokens)):
            if source.documents(shard) is not None:
                runs[shard] = _joined(selected_documents(source, shard))
                shard_tokens[shard] = np.diff(runs[shard]).sum()
        return cls(shard_tokens, seq_len, runs)

    @property
    def num_rows(self) -> int:
        """Rows of the source."""
        return int(self._first_rows[-1])

    @property
    def rows_per_shard(self) -> np.ndarray:
        """int64 [num_shards]: rows in each shard; rows are numbered through the shards in their order."""
        return np.diff(self._first_rows)

    @property
    def num_tokens(self) -> int:
        """Tokens of the source: every one is in exactly one row."""
        return int(self._shard_tokens.sum())

    def row(self, index: int) -> Row:
        """Where the tokens of row `index` lie; raises IndexError outside 0 … num_rows-1."""
        if not 0 <= index < self.num_rows:
            raise IndexError(f"row {index} is outside 0 to {self.num_rows - 1}")
        shard = int(np.searchsorted(self._first_rows, index, side="right")) - 1
        start = (index - int(self._first_rows[shard])) * self.seq_len
        stop = min(start + self.seq_len, int(self._shard_tokens[shard]))
        if shard not in self._runs:
            return Row(shard, ((start, stop),))
        before = self._before[shard]
        first, last = int(before.searchsorted(start, "right")) - 1, int(before.searchsorted(stop))
        spans = self._runs[shard][first:last].copy()
        spans[0, 0] += start - before[first]
        spans[-1, 1] -= before[last] - stop
        return Row(shard, tuple((begin, end) for begin, end in spans.tolist()))

    def rows(self, index: np.ndarray) -> list[Row]:
        """`row` of each of `index` (int64 [n]), quicker than one by one."""
        if self._runs or not 0 <= index.min(initial=0) <= index.max(initial=-1) < self.num_rows:
            return [self.row(one) for one in index.tolist()]
        shard = self._first_rows.searchsorted(index, side="right") - 1
        start = (index - self._first_rows[shard]) * self.seq_len
        stop = np.minimum(start + self.seq_len, self._shard_tokens[shard])
        spans = zip(start.tolist(), stop.tolist(), strict=True)
        return [Row(number, (span,)) for number, span in zip(shard.tolist(), spans, strict=True)]

    def rows_of(self, shard: int, start: int, stop: int) -> np.ndarray:
        """int64, rising: the rows that hold any of the tokens [start, stop) of a shard; `row` the other way round."""
        first = int(self._first_rows[shard])
        if shard in self._runs:
            start, stop = (self._packed_before(shard, place) for place in (start, stop))
        return np.arange(first + start // self.seq_len, first + -(-stop // self.seq_len) if stop > start else first)

    def _packed_before(self, shard: int, place: int) -> int:
        """Packed tokens of a shard that lie before a place in it."""
        runs = self._runs[shard]
        run = int(runs[:, 0].searchsorted(place, "right")) - 1
        return int(self._before[shard][run] + min(place, runs[run, 1]) - runs[run, 0]) if run >= 0 else 0


def _joined(ranges: np.ndarray) -> np.ndarray:
    """Rising ranges, int64 [n, 2], without the empty ones and with those that meet made one."""
    ranges = ranges[ranges[:, 1] > ranges[:, 0]]
    if not len(ranges):
        return ranges
    apart = ranges[1:, 0] != ranges[:-1, 1]
    return np.stack([ranges[np.append(True, apart), 0], ranges[np.append(apart, True), 1]], axis=1)


def document_pieces(doc_offsets: np.ndarray, start: int, stop: int) -> tuple[int, np.ndarray]:
    """The documents that tokens [start, stop) of a shard, not empty, lie in.

    `doc_offsets` is uint64 [num_documents + 1]. Returns the index of the first of those documents, and int64 [n + 1]
    bounds: piece i is [bounds[i], bounds[i + 1]) of document first + i, cut to the span. A document without tokens
    gives a piece without tokens. Boundaries come from the record, never from a separator token.
    """
    # Keys of the array's own type: a signed key would turn the whole array into doubles at each call.
    first = int(np.searchsorted(doc_offsets, doc_offsets.dtype.type(start), side="right")) - 1
    last = int(np.searchsorted(doc_offsets, doc_offsets.dtype.type(stop), side="left"))
    return first, np.clip(doc_offsets[first : last + 1].astype(np.int64), start, stop)
