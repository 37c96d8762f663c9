"""Which row the m-th sample of a source reads: a permutation of its rows for each epoch, of all sources at once.

With N rows, sample m is in epoch m // N and reads row permutation(m mod N). Nothing is stored but the parameters of
the permutations used lately. The permutation itself is in `permutation.py`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from cpt_dist.data.permutation import Permutation, derive_key, drawn_parameters, permuted
from cpt_dist.data.plans import RowsKey
from cpt_dist.data.stage_plan import SourceRows
from cpt_dist.data.window import WindowedPermutation, row_permutation

_KEPT_PERMUTATIONS = 4096
_KEPT_WINDOWED = 256


class RowOrder:
    """The rows of `sources` in the order in which samples read them, under a seed.

    With `window_shards` rows are drawn from that many shards at a time (`window.py`), with 0 from all.
    """

    def __init__(self, sources: Sequence[SourceRows], seed: int, window_shards: int = 0) -> None:
        self._sources, self._seed, self._window_shards = list(sources), seed, window_shards
        kinds = {kind for source in sources for kind in source.rows}
        self._num_rows = {
            kind: np.array([source.rows.get(kind, (0, 0))[0] for source in sources], dtype=np.int64) for kind in kinds
        }
        self._kept: dict[tuple[int, RowsKey, int], np.ndarray] = {}
        self._windowed: OrderedDict[tuple[int, RowsKey, int], Permutation | WindowedPermutation] = OrderedDict()

    def _key(self, source: int, kind: RowsKey, epoch: int) -> int:
        generation = 0  # a source that grows gets a further generation of rows; its old rows keep their order
        return derive_key("rows", self._seed, self._sources[source].name, kind, generation, epoch)

    def rows(self, kind: RowsKey, source: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row and epoch (int64 [num] each) of the sources' own samples `index` (int64 [num], not empty).

        `kind` is a stage's `rows_key`.
        """
        num_rows = self._num_rows[kind]
        epoch, local = np.divmod(index, num_rows[source])
        # Samples of one source in one epoch share a permutation; all permutations are evaluated in one go.
        lowest = int(epoch.min())
        span = int(epoch.max()) - lowest + 1
        pairs, pair_of = np.unique(source * span + (epoch - lowest), return_inverse=True)
        keys = [(pair // span, kind, lowest + pair % span) for pair in pairs.tolist()]
        if self._window_shards:
            row = np.empty_like(local)
            for number, key in enumerate(keys):
                chosen = pair_of == number
                row[chosen] = self._permutation(*key)(local[chosen])
            return row, epoch
        known = {key: found for key in keys if (found := self._kept.get(key)) is not None}
        missing = [key for key in keys if key not in known]
        if missing:
            sizes = [int(num_rows[number]) for number, _, _ in missing]
            known.update(zip(missing, drawn_parameters(sizes, [self._key(*key) for key in missing]), strict=True))
            # Replaced, never changed: a batch may be made in another thread at the same time.
            self._kept = known if len(self._kept) > _KEPT_PERMUTATIONS else {**self._kept, **known}
        return permuted(local, np.stack([known[key] for key in keys], axis=1), pair_of), epoch

    def _permutation(self, source: int, kind: RowsKey, epoch: int) -> Permutation | WindowedPermutation:
        """The permutation alone; one with a window has tables as large as the source has shards, so few are kept."""
        key = (source, kind, epoch)
        if key not in self._windowed:
            if len(self._windowed) >= _KEPT_WINDOWED:
                self._windowed.popitem(last=False)
            num_rows, shard_rows = int(self._num_rows[kind][source]), self._sources[source].shard_rows.get(kind)
            self._windowed[key] = row_permutation(num_rows, shard_rows, self._key(*key), self._window_shards)
        return self._windowed[key]

    def place(self, source: int, kind: RowsKey, epoch: int, row: int) -> int:
        """Which of the source's samples within an epoch reads `row`: `rows` the other way round."""
        return int(self._permutation(source, kind, epoch).inverse([row])[0])
