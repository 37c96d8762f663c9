"""What of a row goes through the model, and what of that is to be predicted.

Documents that were taken down leave a row before it is read from a shard, so its other pieces keep their tokens,
labels and positions. Tokens outside the spans of instruction data are no labels. Nothing here changes which row a
sample reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from cpt_dist.data.packing import Row, RowSource
from cpt_dist.data.take_down import TakeDown

Span = tuple[int, int]
_KEPT_SHARDS = 4096
_NOTHING = np.empty((0, 3), dtype=np.int64)


@dataclass(frozen=True)
class RowsLeft:
    """Rows without what was taken down; `pieces` and `tokens` (int64 [rows]) are what each of them lost."""

    rows: list[Row]
    places: list[list[int]]
    """Of each row the place, in the whole row, at which each of its spans begins."""
    pieces: np.ndarray
    tokens: np.ndarray


class TakenDown:
    """The documents of all take-downs of a ledger, found in each shard when it is first read from."""

    def __init__(self, entries: Iterable[TakeDown]) -> None:
        self._since: dict[bytes, int] = {}
        for entry in entries:
            for one in entry.documents:
                self._since[one] = min(entry.n_start, self._since.get(one, entry.n_start))
        self._halves = np.unique(np.array([_half(one) for one in self._since], dtype=np.uint64))
        self._shards: dict[tuple[str, int], np.ndarray] = {}

    def __bool__(self) -> bool:
        return bool(self._since)

    def since(self, doc_id: bytes) -> int | None:
        """The sample from which a document (16 bytes) is skipped; None where it isn't."""
        return self._since.get(doc_id)

    def at(self, n: int) -> frozenset[bytes]:
        """The ids that are skipped at sample n."""
        return frozenset(one for one, since in self._since.items() if since <= n)

    def in_shard(self, source: RowSource, shard: int) -> np.ndarray:
        """int64 [documents taken down, 3], rising: first token, one past the last, first sample that skips it."""
        key = (source.name, shard)
        found = self._shards.get(key)
        if found is None:
            if len(self._shards) >= _KEPT_SHARDS:
                self._shards.clear()
            found = self._shards[key] = self._find(source.doc_ids(shard), source.doc_offsets(shard))
        return found

    def _find(self, ids: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        # Half an id is compared for all documents at once, the whole of it for the few that agree in that.
        halves = np.ascontiguousarray(ids[:, :8]).view(np.uint64).ravel()
        places = np.searchsorted(self._halves, halves)
        agree = np.flatnonzero(self._halves[np.minimum(places, len(self._halves) - 1)] == halves)
        rows = []
        for document in agree.tolist():
            since = self._since.get(ids[document].tobytes())
            if since is not None:
                rows.append((int(offsets[document]), int(offsets[document + 1]), since))
        return np.array(rows, dtype=np.int64) if rows else _NOTHING

    def cut(
        self, source: RowSource, shard: int, spans: Sequence[Span], n: int
    ) -> tuple[list[Span], list[int], int, int]:
        """What sample n reads of the row of `spans` of a shard: the spans left, the place of each in the whole row,
        and the pieces and tokens that are skipped."""
        ranges = self.in_shard(source, shard)
        ranges = ranges[ranges[:, 2] <= n]
        left, places, before, pieces, tokens = [], [], 0, 0, 0
        for start, stop in spans:
            first, last = np.searchsorted(ranges[:, 1], start, side="right"), np.searchsorted(ranges[:, 0], stop)
            at = start
            for taken_start, taken_stop, _ in ranges[first:last].tolist():
                begin, end = max(taken_start, start), min(taken_stop, stop)
                if begin < end:
                    pieces, tokens = pieces + 1, tokens + end - begin
                    left.append((at, begin))
                    places.append(before + at - start)
                    at = end
            left.append((at, stop))
            places.append(before + at - start)
            before += stop - start
        kept = [number for number, (start, stop) in enumerate(left) if start < stop]
        return [left[number] for number in kept], [places[number] for number in kept], pieces, tokens


def _half(doc_id: bytes) -> int:
    return int(np.frombuffer(doc_id, dtype=np.uint64, count=1)[0])


def unlabelled_runs(loss_spans: np.ndarray, start: int, stop: int) -> np.ndarray:
    """The runs of the tokens [start, stop) of a shard that have no label: int64 [2, runs], counted from `start`.

    `loss_spans` is uint64 [spans, 2], tokens of the shard, rising. The label of token t is token t + 1, so that one
    must lie in a span.
    """
    spans = loss_spans.view(np.int64)
    first = int(np.searchsorted(spans[:, 1], start + 1, side="right"))
    last = int(np.searchsorted(spans[:, 0], stop + 1, side="left"))
    inside = np.clip(spans[first:last] - (start + 1), 0, stop - start)
    runs = np.concatenate([[0], inside.ravel(), [stop - start]]).reshape(-1, 2)
    return runs[runs[:, 0] < runs[:, 1]].T


def rows_left(sources: Sequence[RowSource], rows: Sequence[Row], samples: Sequence[int], taken: TakenDown) -> RowsLeft:
    """The rows (`sources`: that of each row) as they go through the model as the samples with these numbers."""
    left, places = [], []
    lost = np.zeros((2, len(rows)), dtype=np.int64)
    for number, (source, row, n) in enumerate(zip(sources, rows, samples, strict=True)):
        spans, of_spans, *lost[:, number] = taken.cut(source, row.shard, row.spans, n)
        left.append(Row(row.shard, tuple(spans)))
        places.append(of_spans)
    return RowsLeft(left, places, *lost)


def place_runs(left: RowsLeft) -> np.ndarray:
    """The runs of positions of rows that lie end to end, which keep those of the whole rows: `Batch.position_runs`."""
    runs, at = [], 0
    for row, places in zip(left.rows, left.places, strict=True):
        for (start, stop), place in zip(row.spans, places, strict=True):
            runs.append((at, place))
            at += stop - start
    return np.array(runs, dtype=np.int64).T
