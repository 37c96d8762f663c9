"""Shards fetched before they are needed: which ones is read off the sample order, not guessed.

One thread of one process of each host looks ahead from the present sample and fetches, for each source, the next few
shards that aren't in the cache. It only warms the cache: what it fails to fetch, the reader fetches itself and reports.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import numpy as np

from cpt_dist.data.order import SampleOrder
from cpt_dist.data.packing import RowSource
from cpt_dist.data.plans import make_plan
from cpt_dist.data.shard_cache import CachedFile
from cpt_dist.errors import UserError

_LOOK_AHEAD_SAMPLES = 1 << 14
"""Looked through at one time; a few milliseconds."""

_FARTHEST_SAMPLES = 1 << 22

_LONGEST_END_SECONDS = 1.0
"""A job that was asked to stop doesn't wait for a download; the next one goes on with its beginning."""


def remote_files(source: RowSource) -> list[CachedFile]:
    """The files of a source's shards where it lies behind a URL, in the order of the shards; none otherwise."""
    return getattr(source, "remote_files", [])


def shards_ahead(order: SampleOrder, sources: Sequence[RowSource], n: int) -> Iterator[tuple[int, int, int]]:
    """(sample, source, shard) from sample n on: each shard once, in the order of first use, up to the stage's end.

    The sample is exact to 16,384. Only shards behind a URL are given; the look ends after 4 million samples.
    """
    if n >= order.num_samples:
        return
    stage = order.stages[order.stage_of(n)]
    plans = [make_plan(source, stage.seq_len, stage.packing) for source in sources]
    ends = [np.cumsum(plan.rows_per_shard) for plan in plans]
    first_codes = np.cumsum([0, *(len(end) for end in ends)])
    is_remote = [bool(remote_files(source)) for source in sources]
    seen: set[int] = set()
    for at in range(n, _horizon(order, n), _LOOK_AHEAD_SAMPLES):
        samples = order.samples(at, min(_LOOK_AHEAD_SAMPLES, _horizon(order, n) - at))
        codes = np.empty_like(samples.row)
        for source in np.unique(samples.source):
            chosen = samples.source == source
            codes[chosen] = first_codes[source] + np.searchsorted(ends[source], samples.row[chosen], side="right")
        _, firsts = np.unique(codes, return_index=True)
        for code in codes[np.sort(firsts)].tolist():
            if code not in seen:
                seen.add(code)
                source = int(np.searchsorted(first_codes, code, side="right")) - 1
                if is_remote[source]:
                    yield at, source, code - int(first_codes[source])


def _horizon(order: SampleOrder, n: int) -> int:
    """The sample at which a look ahead from sample n ends."""
    if n >= order.num_samples:
        return n
    return min(order.stage_starts[order.stage_of(n) + 1], n + _FARTHEST_SAMPLES)


class Prefetcher:
    """Keeps in the cache what is needed from the sample on that `move_to` names. Use as a context.

    Of a windowed order that is, for each source, the shards of a window and `num_shards` more, in the order of their
    first use; of any other, which draws each row from any shard, all that the stage will read. Starts no thread where
    `num_shards` is 0 or no source lies behind a URL.
    """

    def __init__(self, order: SampleOrder, sources: Sequence[RowSource], num_shards: int) -> None:
        self._order, self._sources = order, list(sources)
        self._at_a_time = num_shards + order.window_shards if order.window_shards else None
        self._position = self._look_again_at = 0
        self._moved = threading.Event()
        self._stopped = False
        wanted = num_shards > 0 and any(remote_files(source) for source in sources)
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
                    self._fetch_ahead(self._position)
                except UserError:
                    continue  # the reader meets the same failure, and says so

    def _fetch_ahead(self, n: int) -> None:
        files, seen = self._wanted(n)
        # What is needed first was used last, as far as the eviction is concerned.
        for file in reversed(files):
            file.touch()
        keep = {file.path for file in files}
        for file in files:
            if self._stopped:
                return
            file.prefetch(keep)
        # Looking costs time; what was seen holds for a good part of the way.
        self._look_again_at = n + (seen - n) // 8

    def _wanted(self, n: int) -> tuple[list[CachedFile], int]:
        """The files to have in the cache from sample n on, in the order of first use, and the sample seen up to."""
        left = [len(remote_files(source)[: self._at_a_time]) for source in self._sources]
        files: list[CachedFile] = []
        for at, source, shard in shards_ahead(self._order, self._sources, n):
            if left[source]:
                left[source] -= 1
                files.append(remote_files(self._sources[source])[shard])
            if not any(left):
                return files, at
        return files, _horizon(self._order, n)
