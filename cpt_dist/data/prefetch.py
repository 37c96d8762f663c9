"""Shards fetched before they are needed: which ones is read off the sample order, not guessed.

One thread of one process of each host looks ahead from the present sample and fetches, for each source, the next few
shards that aren't in the cache. It only warms the cache: what it fails to fetch, the reader fetches itself and reports.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import numpy as np

from cpt_dist.data.order import SampleOrder
from cpt_dist.data.packing import ConcatAndChunk
from cpt_dist.data.shards import Source
from cpt_dist.errors import UserError

_LOOK_AHEAD_SAMPLES = 1 << 14
"""Looked through at one time; a few milliseconds."""

_FARTHEST_SAMPLES = 1 << 22

_LONGEST_END_SECONDS = 60.0


def shards_ahead(order: SampleOrder, sources: Sequence[Source], n: int) -> Iterator[tuple[int, int, int]]:
    """(sample, source, shard) from sample n on: each shard once, in the order of first use, up to the stage's end.

    The sample is exact to 16,384. Only shards behind a URL are given; the look ends after 4 million samples.
    """
    if n >= order.num_samples:
        return
    stage = order.stage_of(n)
    seq_len = order.stages[stage].seq_len
    ends = [np.cumsum(ConcatAndChunk(source.shard_tokens, seq_len).rows_per_shard) for source in sources]
    first_codes = np.cumsum([0, *(len(end) for end in ends)])
    seen: set[int] = set()
    last = min(order.stage_starts[stage + 1], n + _FARTHEST_SAMPLES)
    for at in range(n, last, _LOOK_AHEAD_SAMPLES):
        samples = order.samples(at, min(_LOOK_AHEAD_SAMPLES, last - at))
        codes = np.empty_like(samples.row)
        for source in np.unique(samples.source):
            chosen = samples.source == source
            codes[chosen] = first_codes[source] + np.searchsorted(ends[source], samples.row[chosen], side="right")
        _, firsts = np.unique(codes, return_index=True)
        for code in codes[np.sort(firsts)].tolist():
            if code not in seen:
                seen.add(code)
                source = int(np.searchsorted(first_codes, code, side="right")) - 1
                if sources[source].remote_files:
                    yield at, source, code - int(first_codes[source])


class Prefetcher:
    """Keeps in the cache what is needed from the sample on that `move_to` names. Use as a context.

    That is, for each source, the next `num_shards` shards; of a windowed order the window and `num_shards` more.
    Starts no thread where `num_shards` is 0 or no source lies behind a URL. Leaving the context waits until the file
    that it is fetching is there. Processes must be forked before the first `move_to`: a fork copies locks in use.
    """

    def __init__(self, order: SampleOrder, sources: Sequence[Source], num_shards: int) -> None:
        self._order, self._sources = order, list(sources)
        self._num_shards = num_shards + order.window_shards
        self._position = self._look_again_at = 0
        self._moved = threading.Event()
        self._stopped = False
        wanted = num_shards > 0 and any(source.remote_files for source in sources)
        # A daemon: a slow server must not hold up the end of a job that was asked to stop.
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True) if wanted else None

    def __enter__(self) -> Prefetcher:
        if self._thread:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        self._moved.set()
        if self._thread:
            self._thread.join(_LONGEST_END_SECONDS)

    def move_to(self, n: int) -> None:
        """Sample n is the next that is needed."""
        self._position = n
        self._moved.set()

    def _run(self) -> None:
        while True:
            self._moved.wait()
            self._moved.clear()
            if self._stopped:
                return
            if self._position >= self._look_again_at:
                try:
                    self._look_ahead(self._position)
                except UserError:
                    continue  # the reader meets the same failure, and says so

    def _look_ahead(self, n: int) -> None:
        left = [self._num_shards if source.remote_files else 0 for source in self._sources]
        seen = n
        for at, source, shard in shards_ahead(self._order, self._sources, n):
            seen = at
            if self._stopped:
                return
            if left[source]:
                left[source] -= 1
                self._sources[source].remote_files[shard].prefetch()
            if not any(left):
                break
        # Looking costs time; what was seen holds for a good part of the way.
        self._look_again_at = n + (seen - n) // 8
