"""A permutation of a source's rows that needs only a few of its shards at a time.

Shards are permuted, W of them in a row make a window, and rows are permuted within each window; the windows come one
after the other. It mixes less than a permutation of all rows, which is its price for a bounded cache. Grain and
MosaicML streaming shuffle in windows too; here index to row is a pure function, evaluated at any index.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np

from cpt_dist.data.permutation import Permutation, derive_key

_KEPT_WINDOWS = 4


def row_permutation(
    num_rows: int, shard_rows: np.ndarray | Sequence[int] | None, key: int, window: int
) -> Permutation | WindowedPermutation:
    """The order of a source's rows: drawn from all of them, or with `window` > 0 from that many shards at a time.

    `shard_rows` is int64 [num_shards] and read with a window only.
    """
    return (
        WindowedPermutation(shard_rows, key, window)
        if window and shard_rows is not None
        else Permutation(num_rows, key)
    )


class WindowedPermutation:
    """A bijection of 0 … size-1 chosen by a 128-bit key; rows of shard s are numbered behind those of shard s-1.

    `rows_per_shard` is int [num_shards]. Any `size` indices in a row touch rows of one window of at most `window`
    shards until all of its rows are done. Raises ValueError for no rows or window < 1.
    """

    def __init__(self, rows_per_shard: np.ndarray | Sequence[int], key: int, window: int) -> None:
        rows = np.asarray(rows_per_shard, dtype=np.int64)
        filled = np.flatnonzero(rows)
        if window < 1 or not filled.size:
            raise ValueError(f"window {window} must be at least 1, and some shard must have a row")
        self.size = int(rows.sum())
        self._key = key
        shards = filled[Permutation(filled.size, derive_key("shards", key))(np.arange(filled.size))]
        self._ends = np.cumsum(rows)
        self._first_rows = (self._ends - rows)[shards]
        self._turn = np.zeros(rows.size, dtype=np.int64)  # place of a shard in the order of shards
        self._turn[shards] = np.arange(shards.size)
        self._shard_bounds = np.concatenate([[0], np.cumsum(rows[shards])])
        last = np.minimum(np.arange(0, filled.size + window, window), filled.size)
        self._window_bounds = np.unique(self._shard_bounds[last])
        self._windows: OrderedDict[int, Permutation] = OrderedDict()

    def __call__(self, index: np.ndarray | Sequence[int]) -> np.ndarray:
        """Images of `index` (integers [n] within 0 … size-1) as int64 [n]; raises IndexError outside that range."""
        places = self._within_windows(self._checked(index), Permutation.__call__)
        shards = np.searchsorted(self._shard_bounds, places, side="right") - 1
        return self._first_rows[shards] + places - self._shard_bounds[shards]

    def inverse(self, image: np.ndarray | Sequence[int]) -> np.ndarray:
        """The indices whose images are `image` (integers [n] within 0 … size-1), as int64 [n].

        Raises IndexError outside that range.
        """
        rows = self._checked(image)
        turns = self._turn[np.searchsorted(self._ends, rows, side="right")]
        places = self._shard_bounds[turns] + rows - self._first_rows[turns]
        return self._within_windows(places, Permutation.inverse)

    def _checked(self, index: np.ndarray | Sequence[int]) -> np.ndarray:
        values = np.atleast_1d(np.asarray(index, dtype=np.int64))
        if values.size and (values.min() < 0 or values.max() >= self.size):
            raise IndexError(f"index outside 0 to {self.size - 1}")
        return values

    def _within_windows(
        self, values: np.ndarray, function: Callable[[Permutation, np.ndarray], np.ndarray]
    ) -> np.ndarray:
        """`function` of the window's own permutation applied to each value, counted from the window's start."""
        windows = np.searchsorted(self._window_bounds, values, side="right") - 1
        result = np.empty_like(values)
        for window in np.unique(windows):
            chosen = windows == window
            start = self._window_bounds[window]
            result[chosen] = start + function(self._permutation(int(window)), values[chosen] - start)
        return result

    def _permutation(self, window: int) -> Permutation:
        if window not in self._windows:
            if len(self._windows) >= _KEPT_WINDOWS:
                self._windows.popitem(last=False)
            size = int(self._window_bounds[window + 1] - self._window_bounds[window])
            self._windows[window] = Permutation(size, derive_key("window", self._key, window))
        return self._windows[window]
