"""From the name of a way of packing to the plan of a source's rows: the only place that chooses between plans.

A plan is kept with the source that it is of, so that the order, the loader and whoever asks next share one. Nothing is
packed here (`packing.py`, `best_fit.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakKeyDictionary

from cpt_dist.config import BEST_FIT, CONCAT, STRUCTURAL
from cpt_dist.data.best_fit import BEST_FIT_VERSION, BestFit, StructuralFit
from cpt_dist.data.packing import ConcatAndChunk, PackPlan, RowSource
from cpt_dist.data.structural import STRUCTURAL_VERSION

RowsKey = int | str
"""Names a set of rows of a source: the seq_len itself for concat, else packing, its version and the seq_len."""

_plans: WeakKeyDictionary[RowSource, dict[tuple[str, int], PackPlan]] = WeakKeyDictionary()


def rows_key(seq_len: int, packing: str) -> RowsKey:
    """The key of the rows that `packing` makes; two keys mean two sets of rows, each counted from 0."""
    return seq_len if packing == CONCAT else f"{packing}-{_VERSIONS[packing]}:{seq_len}"


def make_plan(source: RowSource, seq_len: int, packing: str = CONCAT) -> PackPlan:
    """The plan of a source's rows of `seq_len` tokens, made once for each source object.

    `packing` is one of `config.PACKINGS`. Raises ValueError if seq_len < 1, and UserError for a damaged shard.
    """
    kept = _plans.setdefault(source, {})
    if (packing, seq_len) not in kept:
        kept[packing, seq_len] = _MAKERS[packing](source, seq_len)
    return kept[packing, seq_len]


_MAKERS: dict[str, Callable[[RowSource, int], PackPlan]] = {
    CONCAT: ConcatAndChunk.of,
    BEST_FIT: BestFit.of,
    STRUCTURAL: StructuralFit.of,
}
_VERSIONS = {BEST_FIT: BEST_FIT_VERSION, STRUCTURAL: STRUCTURAL_VERSION}
